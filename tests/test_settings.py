import re
import tomllib
from pathlib import Path

import pytest

from server.settings import ConfigError, Settings, load_settings, names

FILE = Path(__file__).parent.parent / "configs" / "server.toml"


def written(folder, text):
    file = folder / "mine.toml"
    file.write_text(text)
    return file


def flat(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_shipped_file_is_the_defaults():
    assert load_settings(FILE, {}, {}) == Settings() == load_settings(None, {}, {})


def test_the_shipped_file_names_every_setting_and_comments_it():
    text = FILE.read_text("utf-8")
    named = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    assert list(flat(tomllib.loads(named))) == list(names(Settings))
    assert all(" # " in line for line in named.splitlines() if re.match(r"\w+ = ", line))


def test_environment_overrules_the_file_and_flags_overrule_both(tmp_path):
    file = written(tmp_path, 'host = "10.0.0.1"\nport = 1\ndevice = "cpu"\n[engine]\nqueue_limit = 2\n')
    environment = {"NAIAD_PORT": "3", "NAIAD_DEVICE": "cuda", "NAIAD_ENGINE_QUEUE_LIMIT": "4", "HOME": "/"}
    found = load_settings(file, environment, {"device": "mps", "port": None})
    assert (found.host, found.port, found.device) == ("10.0.0.1", 3, "mps")
    assert (found.engine.queue_limit, found.engine.batching) == (4, "exact")


@pytest.mark.parametrize("name", [*names(Settings)])
def test_every_setting_has_its_variable(name):
    values = {"port": "81", "engine.queue_limit": "81", "engine.batching": "shared", "attention": "xformers"}
    value = values.get(name, "float16" if name == "dtype" else "other")
    found = load_settings(None, {"NAIAD_" + name.replace(".", "_").upper(): value}, {})
    assert found != Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prt = 1", "'prt'.*'port'"),
        ("[engine]\nqueue_limits = 1", r"engine\.queue_limits.*'engine\.queue_limit'"),
        ("port = 99999", "port = 99999: .*65535"),
        ('[engine]\nbatching = "fast"', "batching = 'fast'.*'exact' or 'shared'"),
        ("port =", r"mine\.toml"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_key(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as refused:
        load_settings(written(tmp_path, text), {}, {})
    assert "mine.toml" in str(refused.value)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NAIAD_PROT": "1"}, "NAIAD_PROT.*NAIAD_PORT"),
        ({"NAIAD_PORT": "many"}, "port = 'many'"),
        ({"NAIAD_ENGINE_QUEUE_LIMIT": "0"}, "queue_limit = '0'"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(environment, said):
    with pytest.raises(ConfigError, match=said):
        load_settings(None, environment, {})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(tmp_path / "none.toml", {}, {})


def test_a_folder_is_no_settings_file(tmp_path):
    with pytest.raises(ConfigError, match="directory"):
        load_settings(tmp_path, {}, {})


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        setattr(Settings(), "port", 1)  # noqa: B010 - an assignment is what must fail
