"""The HTTP API, the queue, configuration, the command line and metadata. No tensor maths."""
