"""What changes a loaded model without being one: LoRAs and their kin."""
