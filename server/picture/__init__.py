"""Image files: encoding, metadata and its signature, and reading both back."""
