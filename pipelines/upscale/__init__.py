"""Upscaling of images, with an ESRGAN-family network or Lanczos."""
