"""Where things lie that tests read."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
SHARED = ROOT.parent / "shared"
"""Stands beside some checkouts; tests that read it skip where it is absent."""
SAMPLES = SHARED / "samples"
