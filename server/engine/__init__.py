"""The device thread, its queue and the model it runs."""
