"""Finished pictures: files, their metadata and signature, and reading them back."""
