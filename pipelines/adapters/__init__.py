"""What is added to a model's networks or changes them: image adapters, LoRAs."""
