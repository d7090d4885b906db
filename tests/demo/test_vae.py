"""The demo's VAE as it is kept in the repository."""

from typing import Any

import numpy as np
import torch

from demo.captions import random_scene
from demo.train_vae import load_vae, to_tensor
from pipelines.image.vae import to_pixels


def test_a_drawn_picture_comes_back_from_its_latents(tmp_path):
    vae: Any = load_vae(tmp_path)
    rng = np.random.default_rng(4)
    errors = []
    for _ in range(4):
        picture = random_scene(rng).draw(128, 192, rng)
        with torch.inference_mode():
            latents = vae.encode(to_tensor(picture)[None]).latent_dist.mode()
            back = to_pixels(vae.decode(latents).sample[0])
        assert latents.shape == (1, 4, 24, 16)
        errors.append(np.abs(back.astype(int) - picture).mean())
    assert np.mean(errors) < 16, errors  # a picture's mean color alone is 50 off
