"""NAI's director tools and annotators: line drawings, edge maps, cut-outs, and recipes for the model."""
