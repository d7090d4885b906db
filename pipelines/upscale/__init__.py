"""Making pictures larger, by a network or by Lanczos."""
