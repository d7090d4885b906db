"""Claim: a tag is looked up in less than 5 ms, among 200,000 tags too, whatever is typed.

The lists are one in the layout of a1111-tagcomplete (--tags FILE) and a synthetic one of 200,000 rows, whose names are
made of random syllables. Queries are beginnings, words, aliases and typos of random tags, each as likely, and inputs
that are expensive: single letters, repeated letters, the most frequent pairs of letters. Measured are the time to read,
the time to index, the memory that the index keeps, and the time of a lookup on one thread.
Run: python -m benchmarks.suggest_tags --tags danbooru.csv.gz.
"""

import argparse
import csv
import ctypes
import gzip
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from string import ascii_lowercase
from time import perf_counter

from benchmarks.machine import machine
from server.tags.library import read_tags
from server.tags.suggestions import Suggester
from server.tags.table import Tag

RESULT = Path(__file__).parent / "results" / "suggest_tags.json"
BUDGET_MS = 5.0
SYNTHETIC_ROWS = 200_000
QUERIES = 500
Figures = dict[str, float]


def write_synthetic(file: Path, rows: int, rng: random.Random) -> None:
    """Write a tag file of one to five words of two to four syllables, with Zipf's law of counts and some aliases."""
    syllables = [a + b for a in "bcdfghjklmnprstvwyz" for b in ("a", "e", "i", "o", "u", "an", "er", "in")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(30_000)]

    def make_name() -> str:
        return "_".join(words[int(30_000 * rng.random() ** 3)] for _ in range(rng.randint(1, 5)))

    names = dict.fromkeys(make_name() for _ in range(2 * rows))
    with gzip.open(file, "wt", newline="") as stream:
        write = csv.writer(stream).writerow
        for rank, name in enumerate(list(names)[:rows], 1):
            aliases = ",".join(make_name() for _ in range(rng.choice((0, 0, 0, 0, 1, 2))))
            write((name, 0, 6_000_000 // rank, aliases))


def make_queries(tags: Sequence[Tag], rng: random.Random) -> dict[str, list[str]]:
    """Return queries of each kind."""
    names = [rng.choice(tags).name for _ in range(QUERIES)]
    aliases = [alias for tag in tags for alias in tag.aliases]
    pairs = Counter(name[k : k + 2] for name in names for k in range(len(name) - 1))
    frequent = [pair for pair, _ in pairs.most_common(20)]
    return {
        "beginnings": [name[: rng.randint(1, len(name))] for name in names],
        "prompts": [f"1girl, {{{{smile}}}}, 1.5::{name[: rng.randint(2, 12)]}" for name in names],
        "words": [rng.choice(name.split())[:6] for name in names if name.split()],
        "aliases": [rng.choice(aliases) for _ in range(QUERIES)],
        "one typo": [misspell(name, 1, rng) for name in names],
        "two typos": [misspell(misspell(name, 1, rng), 1, rng) for name in names],
        "single letters": list(ascii_lowercase) * 4,
        "two letters": [a + b for a in ascii_lowercase for b in "aeiorst"],
        "four letters without a tag": ["".join(rng.choices(ascii_lowercase, k=4)) for _ in range(QUERIES)],
        "frequent pairs": ["".join(rng.choices(frequent, k=rng.randint(3, 16))) for _ in range(QUERIES)],
        "repeated letters": [letter * count for letter in ascii_lowercase for count in (4, 6, 7, 16, 100)],
        "long prompts": ["blue hair, " * 3600 + name for name in names[:100]],
    }


def misspell(name: str, first: int, rng: random.Random) -> str:
    """Return a name with one typo after its first letters."""
    place = rng.randint(min(first, len(name) - 1), len(name) - 1)
    head, letter, tail = name[:place], name[place], name[place + 1 :]
    return head + rng.choice(
        (
            tail,
            letter * 2 + tail,
            "q" + tail,
            tail[:1] + letter + tail[1:],
            rng.choice(ascii_lowercase) + letter + tail,
        )
    )


def measure_memory(build: Callable[[], Suggester]) -> tuple[Suggester, float, float]:
    """Return what is built, the seconds it took, and the MiB that the process keeps for it."""
    before, started = resident_mib(), perf_counter()
    built = build()
    seconds = perf_counter() - started
    return built, seconds, resident_mib() - before


def resident_mib() -> float:
    """Return the process's resident memory, with freed memory given back."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measure_lookups(suggester: Suggester, queries: Sequence[str]) -> Figures:
    """Return the median, the 99th percentile and the maximum of a lookup in milliseconds, and of the budget."""
    times: list[float] = []
    for query in queries:
        started = perf_counter()
        suggester.suggest(query)
        times.append(1000 * (perf_counter() - started))
    p99 = quantiles(times, n=100)[98]
    figures = {
        "median_ms": median(times),
        "p99_ms": p99,
        "max_ms": max(times),
        "share_of_budget": p99 / BUDGET_MS,
    }
    return {name: round(value, 3) for name, value in figures.items()}


def measure(file: Path, rng: random.Random) -> dict[str, object]:
    """Return the figures of one list."""
    started = perf_counter()
    read = read_tags(file)
    read_seconds = perf_counter() - started
    suggester, seconds, mib = measure_memory(lambda: Suggester(read()))
    tags = read()
    lookups = {name: measure_lookups(suggester, queries) for name, queries in make_queries(tags, rng).items()}
    facts = {"tags": len(tags), "read_s": read_seconds, "index_s": seconds, "memory_mib": mib}
    return {**{name: round(value, 3) for name, value in facts.items()}, "lookups": lookups}


def main() -> None:
    """Measure both lists, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tags", type=Path, required=True, help="tag file to measure besides the synthetic one"
    )
    arguments = parser.parse_args()
    rng = random.Random(2026)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        synthetic = Path(folder) / "synthetic.csv.gz"
        write_synthetic(synthetic, SYNTHETIC_ROWS, rng)
        for name, file in (("file", arguments.tags), ("synthetic", synthetic)):
            results[name] = found = measure(file, rng)
            print(name, {key: value for key, value in found.items() if key != "lookups"})
            print(f"{'':28}{'median':>8}{'p99':>8}{'max':>8}  ms; p99 of {BUDGET_MS:g} ms")
            lookups: dict[str, Figures] = found["lookups"]  # pyright: ignore[reportAssignmentType]
            for kind, figures in lookups.items():
                *times, share = figures.values()
                print(f"{kind:28}{''.join(f'{value:8.3f}' for value in times)}{share:10.0%}", flush=True)
    RESULT.write_text(json.dumps({**results, "budget_ms": BUDGET_MS, "machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
