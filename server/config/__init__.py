"""Configuration files: settings, the model catalogue and profiles."""
