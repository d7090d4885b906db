"""Claim: every case made after users' reports (shared/cases, next to the checkout) gives its right answer.

Run: `python -m benchmarks.cases [--checkout DIR] [--only NAME ...] [--save]`. A checkout needs its `.venv`; its
command line and its server are used as a user would. Prints a row per case; the status is 1 if one is wrong. Minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import api_cases, picture_cases, weights_cases
from benchmarks.case_table import Bench, Case, Wrong
from benchmarks.checkout import Checkout, ServerFailed
from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
INPUTS = ROOT.parent / "shared" / "cases"
RESULT = Path(__file__).parent / "results" / "cases.json"


def judge(case: Case, bench: Bench) -> dict[str, object]:
    """Judge one case."""
    started = time.monotonic()
    try:
        got, is_right = case.judge(bench), True
    except (Wrong, ServerFailed) as error:
        got, is_right = str(error), False
    except (OSError, ValueError, KeyError, AssertionError, subprocess.SubprocessError) as error:
        got, is_right = f"{type(error).__name__}: {error}", False
    seconds = round(time.monotonic() - started, 1)
    got = " ".join(got.replace(str(bench.checkout.folder), ".").split())[:200]
    return {"right": case.right, "got": got, "ok": is_right, "seconds": seconds}


def select(names: list[str]) -> Iterator[Case]:
    """Yield the cases whose name contains one of the names; all if there are none."""
    for case in (*picture_cases.CASES, *api_cases.CASES, *weights_cases.CASES):
        if not names or any(name in case.name for name in names):
            yield case


def main() -> None:
    """Judge all cases, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    if not INPUTS.is_dir():
        sys.exit(f"{INPUTS}: the cases are not next to this checkout")
    rows: dict[str, dict[str, object]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="naiad-cases-")))
        bench = Bench(Checkout(arguments.checkout.resolve(), folder), INPUTS, stack)
        for case in select(arguments.only):
            row = rows[case.name] = judge(case, bench)
            verdict = "ok" if row["ok"] else "WRONG"
            print(f"{case.name} | {case.right} | {row['got']} | {verdict} | {row['seconds']} s", flush=True)
    wrong = sum(not row["ok"] for row in rows.values())
    print(f"{len(rows) - wrong} of {len(rows)} are right")
    if arguments.save:
        RESULT.write_text(
            json.dumps({"machine": machine(), "cases": rows}, indent=2, ensure_ascii=False) + "\n"
        )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
