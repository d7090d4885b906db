"""Everything between a job and its images: the numerics of the NAI Diffusion V3 pipeline. Knows nothing of HTTP."""
