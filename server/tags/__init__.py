"""Tag suggestions: the list of tags, its index, and the search for the tag at the end of a prompt."""
