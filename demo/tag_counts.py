"""Count the tags of the demo's training captions, for suggestions: writes configs/demo_tags.csv.

Run: python -m demo.tag_counts.
"""

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from demo.captions import random_scene, write_caption
from pipelines.text.prompt import parse

FILE = Path(__file__).parents[1] / "configs" / "demo_tags.csv"
CAPTIONS = 100_000


def count_tags(captions: int, seed: int = 2026) -> Counter[str]:
    """Return how many of a number of random captions have each tag."""
    rng, counts = np.random.default_rng(seed), Counter[str]()
    for _ in range(captions):
        caption = write_caption(random_scene(rng), rng)
        text = "".join(run for segment in parse(caption) for run, _ in segment.runs)
        counts.update({tag.strip() for tag in text.split(",")} - {""})
    return counts


def main() -> None:
    """Write the file, the most frequent tags first."""
    with FILE.open("w", newline="") as file:
        rows = sorted(count_tags(CAPTIONS).items(), key=lambda item: (-item[1], item[0]))
        csv.writer(file, lineterminator="\n").writerows((name, 0, count, "") for name, count in rows)


if __name__ == "__main__":
    main()
