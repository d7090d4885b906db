"""The YAML file next to a checkpoint, with the same stem, by which A1111 and Forge are set to another prediction.

It is the config of CompVis' or Stability's training code. Only lines `key: value` are looked for, so that no YAML of
unknown origin is parsed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.weights.claim import UNKNOWN, Claim, interpret, parse_flag
from pipelines.weights.config_file import MAX_BYTES, is_near

COMMENT = re.compile(r"(^|\s)#.*$", re.MULTILINE)
ENTRY = re.compile(r"""(?:^|[\s{,-])["']?(\w+)["']?[ \t]*:[ \t]*["']?([\w.+-]+)""")
SCALING = re.compile(r"\.(\w*(?:Scaling|Flow)\w*)$")
SCALINGS = {"EpsScaling": "eps", "VScaling": "v", "VScalingWithEDMcNoise": "edm_v", "EDMScaling": "edm"}
"""Classes of Stability's code that turn the network's output into an image."""
ZSNR_KEYS = {"zero_terminal_snr", "use_zero_snr", "zero_snr", "rescale_betas_zero_snr", "zsnr", "ztsnr"}
TABLE = {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000.0}
"""Stable Diffusion's noise table in these configs."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """The entries of the YAML file next to a checkpoint, in its order."""

    file: Path
    entries: tuple[tuple[str, str], ...]

    def read_claims(self) -> Iterator[Claim]:
        """Yield what it says about the prediction."""
        for key, value in self.entries:
            source = f"{self.file.name} next to it sets {key} to {value!r}"
            scaling = SCALING.search(value)
            claim = None
            if key == "parameterization":
                claim = interpret(value, source)
            elif key in ZSNR_KEYS:
                zsnr = parse_flag(value)
                claim = Claim(source, unsupported=UNKNOWN) if zsnr is None else Claim(source, zsnr=zsnr)
            elif key == "target" and scaling:
                claim = interpret(SCALINGS.get(scaling[1], scaling[1]), source)
            if claim is not None:
                yield claim

    def check(self, latent_scale: float) -> None:
        """Raise WeightsError if it sets another noise table than Stable Diffusion's or another scale of latents."""
        for key, value in self.entries:
            expected = (TABLE | {"scale_factor": latent_scale}).get(key)
            if expected is not None and not _is_expected(value, expected):
                reason = (
                    f"it sets {key} to {value}; only {expected:g} is supported for the checkpoint next to it"
                )
                raise WeightsError(self.file, reason)


def find_sidecar(path: Path) -> Sidecar | None:
    """Read the YAML file next to a checkpoint, None without one; raise WeightsError if it cannot be read."""
    for suffix in (".yaml", ".yml"):
        file = path.with_name(path.name.removesuffix(".safetensors") + suffix)
        if path.name.endswith(".safetensors") and file.is_file():
            return Sidecar(file, tuple(ENTRY.findall(COMMENT.sub("", _read_text(file)))))
    return None


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise WeightsError(
                file, f"more than {MAX_BYTES} bytes; a config next to a checkpoint has a few thousand"
            )
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WeightsError(file, "not UTF-8; save it as that, or rename it if it is no config") from error
    except OSError as error:
        raise WeightsError(file, f"cannot be read: {error.strerror}") from error


def _is_expected(text: str, expected: float) -> bool:
    try:
        return is_near(float(text), expected)
    except ValueError:
        return False
