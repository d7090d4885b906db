"""The VAE of Stable Diffusion: an encoder of images and a decoder of latents."""
