"""The mutations that the semantic tests are measured with still fit the sources."""

import pytest
from paths import ROOT

from benchmarks.demo_mutations import MUTATIONS


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_quotes_exactly_one_place(name):
    file, old, new = MUTATIONS[name]
    assert (ROOT / file).read_text("utf-8").count(old) == 1
    assert old != new
