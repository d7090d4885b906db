"""Updates the model card, docs/demo-model.md: `python -m demo.card`.

Its images are generated with the model in the repository; its figures come from the results of the benchmarks.
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
CARD, GRID, LARGE_GRID = (ROOT / "docs" / f"demo-model{end}" for end in (".md", ".webp", "-large.webp"))
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
"""Target shares of correct images at 512x512. At 832x1216 they are up to .05 lower."""


def load_tile(number: int) -> Pixels:
    """Return one image (height, width, 3) of the card's grid, as WebP compressed it."""
    row, column = divmod(number, COLUMNS)
    with Image.open(GRID) as file:
        grid = np.asarray(file.convert("RGB"))
    top, left = row * SIZE[1], column * SIZE[0]
    return grid[top : top + SIZE[1], left : left + SIZE[0]]


def format_table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_figures(results: Mapping[str, Any]) -> str:
    """Return a table of the shares of correct images and one of all other results."""
    small, large = (results.get(size, {}) for size in _TABLE_SIZES)
    shares = [(name, small.get(name, "-"), large.get(name, "-"), target) for name, target in TARGETS.items()]
    others = [
        (part, line)
        for part, values in results.items()
        if part not in (*_TABLE_SIZES, "machine")
        for line in _flatten(values)
    ]
    return "\n\n".join(
        [
            format_table(("correct", "512x512", "832x1216", "target at 512x512"), shares),
            format_table(("measured", "result"), others),
        ]
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a line for each value of nested mappings."""
    lines: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += _flatten(value, f"{prefix}{name}, ")
        else:
            lines.append(f"{prefix}{name}: {value}")
    return lines


def format_mutations(results: Mapping[str, list[str]]) -> str:
    """Return a table of the mutations with the tests that failed."""
    rows = [(name, ", ".join(f"`{test}`" for test in failed) or "none") for name, failed in results.items()]
    return format_table(("mutation", "tests of `tests/end_to_end/test_semantics.py` that fail"), rows)


def replace_sections(card: str, sections: Mapping[str, str]) -> str:
    """Replace the text between the two markers of each section."""
    for name, text in sections.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        card = pattern.sub(lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}", card)
    return card


def _load_results(name: str) -> dict[str, Any]:
    """Return the results of a benchmark, empty if it has not been run."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def main() -> None:
    """Generate the images and update the tables."""
    generate_samples(DEMO, SIZE).save(GRID, quality=90)
    large = generate_samples(DEMO, (832, 1216), SAMPLE_PROMPTS[:4])
    large.resize((large.width // 2, large.height // 2), Image.Resampling.LANCZOS).save(LARGE_GRID, quality=88)
    sections = {
        "figures": format_figures(_load_results("demo_semantics")),
        "mutations": format_mutations(_load_results("demo_mutations").get("mutations", {})),
    }
    CARD.write_text(replace_sections(CARD.read_text("utf-8"), sections), "utf-8")


if __name__ == "__main__":
    main()
