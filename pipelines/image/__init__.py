"""Between pictures and latents: the VAE, init images, inpainting and what is done to finished pixels."""
