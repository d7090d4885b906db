"""Tag suggestions: the list of tags, its index, and what of a prompt is looked up."""
