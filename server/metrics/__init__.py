"""What `GET /metrics` reports."""
