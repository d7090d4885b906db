"""From a prompt to embeddings."""
