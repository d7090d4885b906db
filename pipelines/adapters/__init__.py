"""What is added to a model's networks: image adapters."""
