"""Configuration files: settings, the model catalog and profiles."""
