"""The UNet of Stable Diffusion, with what does not change from step to step computed once."""
