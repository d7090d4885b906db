"""Data files of naiad: at the root of a checkout, or inside the `server` package in a built wheel."""

from pathlib import Path

SERVER = Path(__file__).parents[1]


def configs() -> Path:
    """Folder of the profiles and the presets."""
    return _find_folder("configs", "configs")


def demo_weights() -> Path:
    """Folder of the demo model's files."""
    return _find_folder("weights", "demo/weights")


def _find_folder(in_package: str, in_checkout: str) -> Path:
    packaged = SERVER / in_package
    return packaged if packaged.is_dir() else SERVER.parent / in_checkout
