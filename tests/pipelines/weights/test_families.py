import re

import pytest
from paths import ROOT

from pipelines.weights.families import FAMILIES

SOURCES = [path for folder in ("pipelines", "server") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_entry_agrees_with_its_architecture(name):
    family = FAMILIES[name]
    assert family.name == name
    for channels in (4, 9):
        architecture = family.architecture(channels)
        assert (architecture.family, architecture.channels) == (name, channels)
        assert len(architecture.text_encoders) == len(family.text_prefixes)
        assert (architecture.unet["addition_embed_type"] == "text_time") == family.takes_size_ids


def test_only_the_table_and_the_architectures_name_a_family():
    names = re.compile("|".join(f'"{name}"' for name in FAMILIES))
    modules = {path.name for path in SOURCES if names.search(path.read_text("utf-8"))}
    assert modules == {"families.py", "architecture.py"}
