"""ControlNets against diffusers' own classes by hand, on small networks of each family and kind."""

from typing import Any

import numpy as np
import pytest
import torch
from control_files import ARCHITECTURES, build_control, draw_map, save_control
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pipelines.adapters.control_file import detect_control
from pipelines.adapters.control_map import ControlMap, RowControl
from pipelines.adapters.controlnet import plan_control
from pipelines.sampling.batching import RowBatcher
from pipelines.sampling.denoise import Row
from pipelines.sampling.prediction import input_scale, scaled_linear
from pipelines.text.encoding import Conditioning
from pipelines.weights.networks import TorchUNet

CPU, HEIGHT, WIDTH = torch.device("cpu"), 8, 12
TABLE = scaled_linear(zsnr=False)
KINDS = {"plain": (None, None), "union of 6": (6, 2), "union of 8": (8, 7)}
"""Number of control types, and the one that is used."""


class Model:
    """A small UNet of a family, ours and diffusers' own with the same weights, and ControlNets for it."""

    def __init__(self, family, folder):
        self.architecture, self.folder = ARCHITECTURES[family], folder
        torch.manual_seed(0)
        config: dict[str, Any] = dict(self.architecture.unet)
        self.oracle = UNet2DConditionModel(**config).eval().requires_grad_(False)
        self.unet = TorchUNet(self.architecture.unet)
        self.unet.module.load_state_dict(self.oracle.state_dict(), assign=True)

    def load(self, network, layout="diffusers", **others):
        path = self.folder / ("folder" if layout == "folder" else f"{layout}.safetensors")
        save_control(path, network, self.architecture, layout)
        plan = plan_control(detect_control(path), self.architecture.unet)
        plan.fill(CPU, torch.float32)
        size = WIDTH * 8, HEIGHT * 8
        image = draw_map(*size, seed=others.pop("seed", 0))
        return RowControl(
            plan.network, ControlMap(plan.network, image, size, CPU, torch.float32), **others
        ), to_pixels(image)

    def make_rows(self, controls=()):
        """A row with the prompt at one sigma and one without at another."""
        generator = torch.Generator().manual_seed(3)
        added = self.architecture.unet["addition_embed_type"] is not None
        width: Any = self.architecture.unet["cross_attention_dim"]
        pooled: Any = self.architecture.text_encoders[-1].config["projection_dim"]
        return [
            Row(
                torch.randn(4, HEIGHT, WIDTH, generator=generator),
                sigma,
                Conditioning(
                    torch.randn(77, width, generator=generator),
                    torch.randn(pooled, generator=generator) if added else None,
                ),
                (64.0, 96.0, 0.0, 0.0, 64.0, 96.0) if added else None,
                controls=controls,
            )
            for sigma in (9.0, 0.5)
        ]

    def evaluate(self, controls=()):
        batcher = RowBatcher(self.unet, TABLE, CPU, torch.float32)
        with torch.inference_mode():
            return torch.stack(batcher.evaluate(self.make_rows(controls)))

    def evaluate_by_hand(self, networks):
        """The same rows with diffusers alone: `networks` are its modules, pixels, strength and control type."""
        rows = self.make_rows()
        sample = torch.stack([row.x * input_scale(row.sigma) for row in rows])
        inputs: dict[str, Any] = {
            "timestep": torch.tensor([TABLE.timestep(row.sigma) for row in rows]),
            "encoder_hidden_states": torch.stack([row.conditioning.context for row in rows]),
        }
        pooled = [row.conditioning.pooled for row in rows if row.conditioning.pooled is not None]
        if pooled:
            inputs["added_cond_kwargs"] = {
                "text_embeds": torch.stack(pooled),
                "time_ids": torch.tensor([row.time_ids for row in rows]),
            }
        down, middle = None, None
        with torch.inference_mode():
            for network, pixels, strength, mode in networks:
                control: dict[str, Any] = {"controlnet_cond": pixels.expand(2, -1, -1, -1)}
                if mode is not None:
                    types = torch.zeros(2, network.config.num_control_type)
                    types[:, mode] = 1
                    control = {"controlnet_cond": [control["controlnet_cond"]], "control_type": types}
                    control["control_type_idx"] = [mode]
                more, end = network(
                    sample, **inputs, **control, conditioning_scale=strength, return_dict=False
                )
                down = more if down is None else [a + b for a, b in zip(down, more, strict=True)]
                middle = end if middle is None else middle + end
            residuals: Any = {
                "down_block_additional_residuals": down,
                "mid_block_additional_residual": middle,
            }
            return self.oracle(sample, **inputs, **residuals).sample


def to_pixels(image):
    values = torch.tensor(np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3).copy())
    return (values.float() / 255).permute(2, 0, 1)[None]


@pytest.fixture(params=ARCHITECTURES)
def model(request, tmp_path):
    return Model(request.param, tmp_path)


# measured: at most 2e-6 of outputs whose largest values are 2 to 5
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_is_that_of_diffusers(model, kind):
    modes, mode = KINDS[kind]
    network = build_control(model.architecture, modes)
    control, pixels = model.load(network, scale=0.7, mode=mode)
    expected = model.evaluate_by_hand([(network, pixels, 0.7, mode)])
    found = model.evaluate((control,))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    other, _ = model.load(network, scale=0.7, mode=mode, seed=1)
    for rest in (model.evaluate(), model.evaluate((other,))):
        assert (found - rest).abs().max() > 0.05


@pytest.mark.parametrize(
    "setting", [{"global_pool_conditions": True}, {"controlnet_conditioning_channel_order": "bgr"}]
)
def test_what_a_folders_config_alone_tells_is_followed(model, setting):
    network = build_control(model.architecture, **setting)
    control, pixels = model.load(network, "folder")
    found = model.evaluate((control,))
    expected = model.evaluate_by_hand([(network, pixels, 1.0, None)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    other, _ = model.load(network)
    assert (found - model.evaluate((other,))).abs().max() > 0.01


def test_two_networks_add_up(model):
    networks = [build_control(model.architecture, seed=1), build_control(model.architecture, 6, seed=2)]
    first, first_pixels = model.load(networks[0], scale=1.0)
    second, second_pixels = model.load(networks[1], scale=0.4, mode=3, seed=1)
    expected = model.evaluate_by_hand(
        [(networks[0], first_pixels, 1.0, None), (networks[1], second_pixels, 0.4, 3)]
    )
    torch.testing.assert_close(model.evaluate((first, second)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("modes", [None, 6])
def test_all_layouts_give_the_same_bits(model, modes):
    network, mode = build_control(model.architecture, modes), None if modes is None else 1
    first, *others = (
        model.evaluate((model.load(network, layout, mode=mode)[0],))
        for layout in ("diffusers", "original", "bare")
    )
    assert all(torch.equal(first, other) for other in others)
