"""Loading a ControlNet: the network that its file is for, built from its model's UNet, and its weights."""

from dataclasses import dataclass
from math import prod

import torch

from pipelines.adapters.control_file import ControlFile
from pipelines.adapters.control_network import DiffusersControlNet
from pipelines.errors import WeightsError
from pipelines.weights.architecture import Config
from pipelines.weights.key_map import MappedKey, map_control_keys
from pipelines.weights.model_plan import BUILD_ERRORS
from pipelines.weights.naming import Naming
from pipelines.weights.reader import fill_network
from pipelines.weights.sources import Component, FoundWeights, find_weights

SHARED = (
    "act_fn", "addition_embed_type", "addition_time_embed_dim", "attention_head_dim", "block_out_channels",
    "cross_attention_dim", "down_block_types", "flip_sin_to_cos", "freq_shift", "layers_per_block", "norm_eps",
    "norm_num_groups", "projection_class_embeddings_input_dim", "transformer_layers_per_block", "use_linear_projection",
)  # fmt: skip
"""What a ControlNet's config has in common with that of the UNet whose down blocks and middle block it is a copy of."""
COMPONENT = "controlnet"


@dataclass(frozen=True, slots=True)
class ControlPlan:
    """A ControlNet, still empty, and where its weights are."""

    file: ControlFile
    network: DiffusersControlNet
    weights: FoundWeights

    def measure(self, dtype: torch.dtype) -> int:
        """Return the bytes of its weights in a dtype."""
        tensors = self.network.module.state_dict().values()
        return sum(prod(tensor.shape) for tensor in tensors) * dtype.itemsize

    def fill(self, device: torch.device, dtype: torch.dtype) -> None:
        """Read the weights onto a device; raise WeightsError if one is not finite."""
        fill_network(self.network.module, self.file.source, self.weights, device, dtype)


def plan_control(file: ControlFile, unet: Config) -> ControlPlan:
    """Plan the loading of a ControlNet from its header.

    Args:
        unet: the config of the UNet of the model that it is to condition.

    Raises:
        WeightsError: a weight is missing, unexpected, or not as that UNet needs it.
    """
    shared = {key: unet[key] for key in SHARED if unet[key] is not None}
    try:
        network = DiffusersControlNet({**file.config, **shared})
    except BUILD_ERRORS:
        raise WeightsError(file.path, "a ControlNet that cannot be built") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in network.module.state_dict().items()}
    keys = {name: MappedKey(name) for name in shapes}
    if file.layout == "original":
        keys = map_control_keys(shapes, unet)
    naming = Naming("", {name: (mapped,) for name, mapped in keys.items()})
    found = find_weights(file.source, [Component(COMPONENT, shapes, [naming])])
    return ControlPlan(file, network, found[COMPONENT])
