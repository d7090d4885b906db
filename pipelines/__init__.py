"""The numerics of the NAI Diffusion V3 pipeline on open weights: torch, and nothing of HTTP."""
