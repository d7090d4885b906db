"""The packages use no global random number generators, which other code could advance."""

import ast
import re

import pytest
from paths import ROOT

FILES = sorted(path for folder in ("server", "pipelines") for path in (ROOT / folder).rglob("*.py"))
DRAWS = ("rand", "normal", "bernoulli", "multinomial", "poisson")
IN_PLACE = {f"{name}_" for name in ("normal", "uniform", "random", "exponential", "bernoulli")}


def is_global(call):
    """Whether a call draws from or seeds a global generator."""
    name = ast.unparse(call.func).replace("numpy.", "np.")
    has_generator = any(keyword.arg == "generator" for keyword in call.keywords)
    if re.fullmatch(r"torch(\.\w+)+", name):
        leaf = name.removeprefix("torch.")
        return "manual_seed" in leaf or leaf == "seed" or (leaf.startswith(DRAWS) and not has_generator)
    if name.startswith("np.random."):
        return name not in {"np.random.default_rng", "np.random.Generator"} or not (
            call.args or call.keywords
        )
    if name.startswith("random."):
        return name not in {"random.Random", "random.SystemRandom"}
    return isinstance(call.func, ast.Attribute) and call.func.attr in IN_PLACE and not has_generator


def find_offenses(text):
    """Yield every import and call that uses a global generator."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in {"random", "numpy.random"}:
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and is_global(node):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_global_generator_is_used(path):
    assert list(find_offenses(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.manual_seed(1)",
        "torch.randn(3)",
        "torch.randn_like(x)",
        "torch.cuda.manual_seed_all(1)",
        "x.normal_()",
        "random.random()",
        "random.seed(1)",
        "np.random.rand(3)",
        "from random import choice",
    ],
)
def test_the_gate_finds_global_generators(line):
    assert list(find_offenses(line))


@pytest.mark.parametrize(
    "line",
    [
        "torch.randn(3, generator=generator)",
        "torch.Generator().manual_seed(1)",
        "np.random.default_rng(1)",
        "x.add_(1)",
    ],
)
def test_the_gate_allows_explicit_generators(line):
    assert not list(find_offenses(line))
