"""From noise to clean latents: samplers, schedules, guidance and the batching of network passes."""
