"""The words of the code: no riddles, and functions that are named by what they do."""

import ast
import re

import pytest
from paths import ROOT

WORDS = re.compile(
    r"\b(anew|nobody|in earnest|told|so many|of such|is none of|deaf|riddle|house)\b", re.IGNORECASE
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = sorted(
    path
    for folder in ("server", "pipelines", "demo", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "test_language.py"
)
ALLOWED = {"house"}
"""A drawing of a house is one of the demo's tags."""
PARTICIPLE = re.compile(
    r"_*([a-z]{2,}ed|told|made|drawn|given|shown|seen|known|taken|written|kept|found|held|sent|chosen|begun|done|said|meant"
    r"|left|lost|met|sold|sought|spoilt|thrown|worn|grown|hidden|broken|built|bound|bent)"
    r"(_(by|to|from|in|at|with|of|for|on|as|first|out)(_\w+)?)?"
)
VERBS = {"embed", "feed", "need", "seed", "proceed", "speed"}
"""Verbs that end like a participle."""


def functions():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node.name


def is_participle(name):
    found = PARTICIPLE.fullmatch(name)
    return found is not None and found[1] not in VERBS


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_text_has_none_of_the_words_that_mark_a_riddle(path):
    allowed = ALLOWED if "demo" in str(path) or path.name.startswith(("demo", "test_semantics")) else set()
    lines = path.read_text("utf-8").splitlines()
    found = [line for line in lines if {word.lower() for word in WORDS.findall(line)} - allowed]
    assert found == []


def test_functions_are_named_by_verbs():
    names = [name for _, name in functions() if not name.startswith("test_")]
    participles = sorted(name for name in names if is_participle(name))
    assert len(participles) < 0.02 * len(names), participles
