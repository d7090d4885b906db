"""Renews what is drawn and counted in the model card, docs/demo-model.md: `python -m demo.card`.

The sheet is drawn by the model in the repository; the figures are those that the benchmarks kept.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.checkpoint import DEMO
from demo.train_unet import SAMPLE_PROMPTS, generate_samples
from pipelines.types import Pixels, Size

ROOT = Path(__file__).parent.parent
PAGE, GRID, LARGE_GRID = (ROOT / "docs" / f"demo-model{end}" for end in (".md", ".webp", "-large.webp"))
RESULTS = ROOT / "benchmarks" / "results"
_TABLE_SIZES = ("512x512", "832x1216")
SIZE: Size = (512, 512)
COLUMNS = 4
TARGETS = {
    "background": 0.97,
    **dict.fromkeys(("hair", "shirt", "shape colour"), 0.93),
    **dict.fromkeys(("count", "shape"), 0.85),
    "eyes": 0.80,
}
"""The shares of pictures that are to be right at 512x512; at 832x1216 up to .05 less."""


def load_tile(number: int) -> Pixels:
    """One of the sheet's pictures (height, width, 3), but for what WebP lost of it."""
    row, column = divmod(number, COLUMNS)
    with Image.open(GRID) as whole:
        shown = np.asarray(whole.convert("RGB"))
    top, left = row * SIZE[1], column * SIZE[0]
    return shown[top : top + SIZE[1], left : left + SIZE[0]]


def format_table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    names = list(head)
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_figures(kept: Mapping[str, Any]) -> str:
    """The shares that are right, and whatever else was measured."""
    small, large = (kept.get(size, {}) for size in _TABLE_SIZES)
    shares = [(name, small.get(name, "-"), large.get(name, "-"), wanted) for name, wanted in TARGETS.items()]
    others = [
        (part, said)
        for part, found in kept.items()
        if part not in (*_TABLE_SIZES, "machine")
        for said in _flatten(found)
    ]
    return "\n\n".join(
        [
            format_table(("right", "512x512", "832x1216", "wanted at 512x512"), shares),
            format_table(("measured", "found"), others),
        ]
    )


def _flatten(found: Mapping[str, Any], before: str = "") -> list[str]:
    """What a part found, one thing after another."""
    said: list[str] = []
    for name, value in found.items():
        said += (
            _flatten(value, f"{before}{name}, ")
            if isinstance(value, Mapping)
            else [f"{before}{name}: {value}"]
        )
    return said


def format_mutations(kept: Mapping[str, list[str]]) -> str:
    """What was broken, and the tests that failed."""
    rows = [(broken, ", ".join(f"`{name}`" for name in failed) or "none") for broken, failed in kept.items()]
    return format_table(("broken", "tests of `tests/end_to_end/test_semantics.py` that fail"), rows)


def replace_sections(page: str, parts: Mapping[str, str]) -> str:
    """A page with new text between each part's two marks."""
    for name, text in parts.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        page = marked.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    return page


def _load_results(name: str) -> dict[str, Any]:
    """What a benchmark kept; nothing when it has not been run."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def main() -> None:
    """Draw the sheets and write the page."""
    generate_samples(DEMO, SIZE).save(GRID, quality=90)
    large = generate_samples(DEMO, (832, 1216), SAMPLE_PROMPTS[:4])
    large.resize((large.width // 2, large.height // 2), Image.Resampling.LANCZOS).save(LARGE_GRID, quality=88)
    parts = {
        "figures": format_figures(_load_results("demo_semantics")),
        "mutations": format_mutations(_load_results("demo_mutations").get("mutations", {})),
    }
    PAGE.write_text(replace_sections(PAGE.read_text("utf-8"), parts), "utf-8")


if __name__ == "__main__":
    main()
