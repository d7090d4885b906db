"""The archive: every picture as a file in dated folders, and an index of them that can be searched."""
