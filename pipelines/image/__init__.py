"""Images and latents: the VAE, init images, inpainting, previews, and overlay and color matching of pixels."""
