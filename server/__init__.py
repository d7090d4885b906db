"""HTTP, queue, files and metadata: nothing here knows tensors."""
