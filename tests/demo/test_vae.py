"""The VAE of the demo model in the repository."""

from typing import Any

import numpy as np
import torch

from demo.captions import random_scene
from demo.train_vae import load_vae, to_tensor
from pipelines.image.vae import to_pixels


def test_drawings_are_decoded_as_they_were_encoded(tmp_path):
    vae: Any = load_vae(tmp_path)
    rng = np.random.default_rng(4)
    errors = []
    for _ in range(4):
        drawing = random_scene(rng).draw(128, 192, rng)
        with torch.inference_mode():
            latents = vae.encode(to_tensor(drawing)[None]).latent_dist.mode()
            decoded = to_pixels(vae.decode(latents).sample[0])
        assert latents.shape == (1, 4, 24, 16)
        errors.append(np.abs(decoded.astype(int) - drawing).mean())
    assert np.mean(errors) < 16, errors  # a drawing's mean color has an error of 50
