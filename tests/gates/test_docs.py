"""The documentation names every sampler, schedule, setting, endpoint, command, module and make target."""

import re
from typing import Any

import pytest
from paths import ROOT

from pipelines.sampling.samplers import ALIASES, SAMPLERS
from pipelines.sampling.schedules import SCHEDULES
from server.api.state import AppState
from server.app import create_app
from server.cli import main as cli
from server.config.catalog import Catalog, ModelEntry, ToolFiles
from server.config.settings import Settings
from server.config.toml import setting_names

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: Any = cli.app.registered_commands
TEXT = "\n".join(page.read_text("utf-8") for page in PAGES)


def list_paths():
    unused: Any = None
    routes = create_app(AppState(unused, unused, unused)).routes
    return sorted({str(getattr(route, "path", "")) for route in routes} - {""})


def list_make_targets():
    return sorted(set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)))


@pytest.mark.parametrize("name", [*SAMPLERS, *ALIASES, *SCHEDULES, *setting_names(Settings), *list_paths()])
def test_a_name_is_in_the_documentation(name):
    assert f"`{name}`" in TEXT or f"`GET {name}`" in TEXT or f"`POST {name}`" in TEXT


@pytest.mark.parametrize(
    "module",
    sorted(file.stem for half in ("pipelines", "server") for file in (ROOT / half).rglob("[a-z]*.py")),
)
def test_a_module_is_named_in_the_architecture(module):
    assert f"`{module}`" in (ROOT / "docs" / "architecture.md").read_text("utf-8")


@pytest.mark.parametrize("command", [command.name or command.callback.__name__ for command in COMMANDS])
def test_a_command_is_in_the_documentation(command):
    assert f"`naiad {command}" in TEXT


@pytest.mark.parametrize("key", [*Catalog.model_fields, *ModelEntry.model_fields, *ToolFiles.model_fields])
def test_a_key_of_the_catalog_is_in_the_example(key):
    example = (ROOT / "weights.example.toml").read_text("utf-8")
    assert key in ("models", "tools", "controlnets") or re.search(rf"^(# )?{key} = ", example, re.MULTILINE)


@pytest.mark.parametrize("target", list_make_targets())
def test_a_make_target_is_in_the_documentation(target):
    assert f"`make {target}`" in TEXT


def find_anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_in_the_documentation_exist(page):
    for name, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)#?([^)]*)\)", page.read_text("utf-8")):
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in find_anchors(target), f"{name}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_has_at_most_120_columns(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in prose.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 120] == []
