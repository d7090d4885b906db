"""From a checkpoint file to networks on a device."""
