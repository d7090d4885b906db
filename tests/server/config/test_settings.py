import re
import tomllib

import pytest
from paths import ROOT

from server.config.settings import Settings, listen_port, load_settings, signing_key_path
from server.config.toml import ConfigError, setting_names

FILE = ROOT / "configs" / "server.toml"

OTHER = {
    "port": "81",
    "token": "pst-secret",
    "metadata": "plain",
    "device": "cpu",
    "dtype": "float16",
    "attention": "xformers",
    "threads": "81",
    "drain_seconds": "81",
    "log_format": "json",
    "tls": "true",
    "engine.queue_limit": "81",
    "engine.deadline": "81",
    "engine.on_disconnect": "finish",
    "engine.active_images": "11",
    "engine.max_rows": "12",
    "engine.exit_on_failure": "false",
    "engine.step_timeout": "83",
    "engine.lora_memory": "81",
    "engine.control_memory": "84",
    "engine.device_memory": "82",
    "engine.parked_memory": "83",
    "speed.channels_last": "on",
    "speed.fused_projections": "off",
    "speed.kernels": "off",
    "speed.graphs": "off",
    "speed.compile_vae": "on",
    "speed.compile_unet": "on",
    "speed.decoder": "tiny",
    "speed.weights": "int8",
    "speed.memory": "6",
    "speed.step_cache": "3",
    "api.prompt_loras": "true",
    "engine.batching": "shared",
    "api.presets": "client",
    "api.unknown_models": "refuse",
    "api.characters": "flatten",
    "api.zip_type": "application/x-zip-compressed",
    "api.body_limit": "8",
    "api.memory_limit": "8192",
    "api.image_cache": "81",
    "api.connections": "81",
    "api.hosts": "pictures.example, other.example",
    "api.origins": "https://pictures.example",
    "api.prefix": "/native, /proxy/nai",
}
"""A value other than the default for each setting that does not accept any text."""


def write_settings(folder, text):
    file = folder / "mine.toml"
    file.write_text(text)
    return file


def iter_keys(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from iter_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_shipped_file_has_the_defaults():
    assert load_settings(FILE, {}, {}) == Settings() == load_settings(None, {}, {})


def test_the_shipped_file_lists_every_setting_with_a_comment():
    text = FILE.read_text("utf-8")
    complete = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    assert list(iter_keys(tomllib.loads(complete))) == list(setting_names(Settings))
    assert all(" # " in line for line in complete.splitlines() if re.match(r"\w+ = ", line))


def test_environment_overrides_the_file_and_flags_override_both(tmp_path):
    file = write_settings(
        tmp_path, 'host = "10.0.0.1"\nport = 1\ndevice = "cpu"\n[engine]\nqueue_limit = 2\n'
    )
    environment = {"NAIAD_PORT": "3", "NAIAD_DEVICE": "cuda", "NAIAD_ENGINE_QUEUE_LIMIT": "4", "HOME": "/"}
    settings = load_settings(file, environment, {"device": "mps", "port": None})
    assert (settings.host, settings.port, settings.device) == (("10.0.0.1",), 3, "mps")
    assert (settings.engine.queue_limit, settings.engine.batching) == (4, "exact")


@pytest.mark.parametrize("name", [*setting_names(Settings)])
def test_every_setting_has_a_variable(name):
    value = OTHER.get(name, "other")
    settings = load_settings(None, {"NAIAD_" + name.replace(".", "_").upper(): value}, {})
    assert settings != Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prt = 1", r":1: 'prt'.*'port'"),
        ("[engine]\nqueue_limits = 1", r":2: 'engine\.queue_limits'.*'engine\.queue_limit'"),
        ("\n\nport = 99999", "mine.toml:3: port = 99999: should be a whole number from 0 to 65535$"),
        ("queue_limit = 2", r":1: .queue_limit. is not a key here; did you mean .engine\.queue_limit"),
        ("port = true", "port = true: should be a whole number from 0 to 65535$"),
        ('port = "4242"', "port = '4242': should be a whole number from 0 to 65535$"),
        ('[engine]\nbatching = "fast"', "batching = 'fast'.*'exact' or 'shared'"),
        ('device = "gpu"', "device = 'gpu'.*auto, cpu, cuda"),
        ('token = "секретный-ключ"', "token: must be at least 8 characters of printable ASCII"),
        ('token = "short"', "token: must be"),
        ('[api]\nhosts = ["http://a.example"]', r"api\.hosts\.0 = 'http://a\.example'.*without http"),
        ('[api]\norigins = ["https://a.example/"]', "origins.*no / at its end"),
        ("host = []", "host: should name at least one address"),
        ("threads = true", "threads = true: should be auto, or a whole number from 1 to 1024"),
        ("threads = 0", "threads = 0: should be auto, or a whole number from 1 to 1024"),
        ('threads = "all"', "threads = 'all': should be auto, or a whole number from 1 to 1024"),
        ('[api]\nprefix = "/ai"', r"api\.prefix = '/ai': .*the server's own /ai"),
        ('[api]\nhosts = ["*.lan"]', r"api\.hosts\.0 = '\*\.lan': .*list each one"),
        ('[api]\nzip_type = "zip"', "zip_type = 'zip'.*octet-stream"),
        ("port =", r"mine\.toml:1: port has no value"),
        (
            "[speed]\nstep_cache = 6",
            r":2: speed\.step_cache = 6: should be a whole number from 1 to 5; 1 turns it off$",
        ),
        ('[speed]\nstep_cache = "off"', "step_cache = 'off': should be a whole number from 1 to 5; 1 turns"),
        ("[speed]\nmemory = 7.5", r"memory = 7\.5: should be auto, or a whole number from 1 to 1024"),
        ('speed = "fast"', r":1: speed = 'fast': should be a table: write \[speed\] and its keys below$"),
        ("[engine]\nqueue_limit = 0", "queue_limit = 0: should be a whole number, at least 1$"),
        ("drain_seconds = 0.5", r"drain_seconds = 0\.5: should be a number from 1 to 86400$"),
        ("tls = 1", "tls = 1: should be true or false$"),
        ("host = 2026-01-01", "no setting takes a date or a time"),
    ],
)
def test_an_invalid_file_is_refused_with_its_line_and_the_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_settings(write_settings(tmp_path, text), {}, {})
    assert "mine.toml" in str(error.value)
    assert "short" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NAIAD_PROT": "1"}, "NAIAD_PROT.*NAIAD_PORT"),
        ({"NAIAD_PORT": "many"}, "NAIAD_PORT = 'many': should be a whole number from 0 to 65535$"),
        (
            {"NAIAD_SPEED_STEP_CACHE": "two"},
            "STEP_CACHE = 'two': should be a whole number from 1 to 5; 1 turns",
        ),
        ({"NAIAD_TLS": "maybe"}, "NAIAD_TLS = 'maybe': should be true or false$"),
        ({"NAIAD_PORT": ""}, "NAIAD_PORT is empty"),
        (
            {"NAIAD_ENGINE_QUEUE_LIMIT": "0"},
            "NAIAD_ENGINE_QUEUE_LIMIT = '0': should be a whole number, at least 1$",
        ),
        ({"NAIAD_ENGINE": "4"}, "NAIAD_ENGINE is not a setting but a table.*NAIAD_ENGINE_BATCHING"),
        (
            {"NAIAD_TOKEN": "secret12", "NAIAD_TOKEN_FILE": "x"},
            "NAIAD_TOKEN and NAIAD_TOKEN_FILE are both set",
        ),
        ({"NAIAD_TOKEN_FILE": "/nowhere/token"}, "NAIAD_TOKEN_FILE = '/nowhere/token': No such file"),
        ({"NAIAD_TOKEN": "with space"}, "NAIAD_TOKEN: must be"),
    ],
)
def test_an_invalid_variable_is_refused_by_name(environment, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_settings(None, environment, {})
    assert "with space" not in str(error.value)


def test_an_invalid_flag_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"--port = 99999: .*65535"):
        load_settings(None, {}, {"port": 99999})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n\n"])
def test_a_token_can_be_read_from_a_file(tmp_path, encoding, end):
    (tmp_path / "token").write_bytes(f"pst-from-a-file{end}".encode(encoding))
    assert load_settings(None, {"NAIAD_TOKEN_FILE": str(tmp_path / "token")}, {}).token == "pst-from-a-file"


def test_the_newline_of_a_secret_store_is_no_part_of_a_variable():
    assert (
        load_settings(None, {"NAIAD_TOKEN": "pst-secret\r\n", "NAIAD_PORT": "80\n"}, {}).token == "pst-secret"
    )


def test_a_settings_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfport = 1\r\n[engine]\r\nqueue_limit = 2\r\n")
    assert load_settings(tmp_path / "mine.toml", {}, {}).engine.queue_limit == 2


@pytest.mark.parametrize(
    "host", ['"127.0.0.1, ::1"', '["127.0.0.1", "::1"]', '[\n  "127.0.0.1",  # IPv4\n  "::1",\n]']
)
def test_several_addresses_are_a_list_or_separated_by_commas(tmp_path, host):
    assert load_settings(write_settings(tmp_path, f"host = {host}"), {}, {}).host == ("127.0.0.1", "::1")
    assert load_settings(None, {}, {"host": "127.0.0.1,::1"}).host == ("127.0.0.1", "::1")


def test_the_token_is_not_in_the_repr():
    assert "pst-secret" not in repr(load_settings(None, {"NAIAD_TOKEN": "pst-secret"}, {}))


def test_lists_in_variables_are_separated_by_commas():
    settings = load_settings(None, {"NAIAD_API_HOSTS": "a.example, b.example"}, {})
    assert settings.api.hosts == ("a.example", "b.example")


def test_relative_paths_are_resolved_against_the_files_folder(tmp_path):
    settings = load_settings(write_settings(tmp_path, 'weights = "w.toml"\nsigning_key = "key.pem"'), {}, {})
    assert (settings.weights, signing_key_path(settings)) == (tmp_path / "w.toml", tmp_path / "key.pem")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(tmp_path / "none.toml", {}, {})


def test_a_folder_is_not_a_settings_file(tmp_path):
    with pytest.raises(ConfigError, match="directory"):
        load_settings(tmp_path, {}, {})


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        setattr(Settings(), "port", 1)  # noqa: B010 - an assignment is what must fail


def test_tls_has_the_port_of_https_unless_one_is_set():
    assert listen_port(load_settings(None, {}, {"tls": None})) == 4242
    assert listen_port(load_settings(None, {}, {"tls": True})) == 443
    assert listen_port(load_settings(None, {"NAIAD_TLS": "1", "NAIAD_PORT": "4242"}, {})) == 4242
    assert listen_port(load_settings(None, {"NAIAD_TLS": "1"}, {"port": 8443})) == 8443
