"""Files that come with naiad: beside the code in a checkout, inside the package in a built wheel."""

from pathlib import Path

SERVER = Path(__file__).parents[1]


def configs() -> Path:
    """Folder of profiles and presets."""
    return _packaged("configs", "configs")


def demo_weights() -> Path:
    """Folder of the demo model's files."""
    return _packaged("weights", "demo/weights")


def _packaged(in_wheel: str, in_checkout: str) -> Path:
    packaged = SERVER / in_wheel
    return packaged if packaged.is_dir() else SERVER.parent / in_checkout
