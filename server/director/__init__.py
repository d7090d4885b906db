"""Tools that make a picture from another one: line drawings, edge maps, cut-outs, and recipes for the model."""
