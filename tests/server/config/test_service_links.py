"""Variables of Kubernetes' services and Docker's links are ignored, misspelled settings are not."""

import pytest
from paths import SHARED

from server.config.settings import Settings, load_settings
from server.config.toml import ConfigError

KUBERNETES = {
    "NAIAD_SERVICE_HOST": "10.43.1.39",
    "NAIAD_SERVICE_PORT": "4242",
    "NAIAD_SERVICE_PORT_HTTP": "4242",
    "NAIAD_PORT": "tcp://10.43.1.39:4242",
    "NAIAD_PORT_4242_TCP": "tcp://10.43.1.39:4242",
    "NAIAD_PORT_4242_TCP_PROTO": "tcp",
    "NAIAD_PORT_4242_TCP_PORT": "4242",
    "NAIAD_PORT_4242_TCP_ADDR": "10.43.1.39",
}
OTHERS = [
    {"NAIAD_PORT": "tcp://[fd00::1]:4242", "NAIAD_SERVICE_HOST": "fd00::1"},
    {"NAIAD_PORT": "udp://10.0.0.1:53", "NAIAD_PORT_53_UDP": "udp://10.0.0.1:53"},
    {"NAIAD_API_SERVICE_HOST": "10.0.0.1", "NAIAD_API_PORT": "tcp://10.0.0.1:80", "NAIAD_API_SERVICE_PORT": "80"},
    {"NAIAD_GPU_0_SERVICE_PORT_METRICS": "9100", "NAIAD_GPU_0_PORT_9100_TCP_ADDR": "10.0.0.1"},
    {"NAIAD_NAME": "/web/naiad", "NAIAD_ENV_NAIAD_TOKEN": "secret-token", "NAIAD_ENV_PATH": "/bin"},
    {"NAIAD_PORT_80_TCP_START": "tcp://172.17.0.2:80", "NAIAD_PORT_80_TCP_PORT_END": "90"},
]  # fmt: skip


@pytest.mark.parametrize(
    "environment", [KUBERNETES, *OTHERS], ids=lambda environment: next(iter(environment))
)
def test_a_services_variables_are_ignored(environment):
    assert load_settings(None, environment, {}) == Settings()


def test_a_port_of_ones_own_counts_beside_them():
    assert load_settings(None, KUBERNETES | {"NAIAD_PORT": "8000"}, {}).port == 8000


@pytest.mark.parametrize(
    "variable",
    [
        ("NAIAD_PROT", "tcp://10.0.0.1:4242"),
        ("NAIAD_PORT", "tcp://0.0.0.0"),
        ("NAIAD_PORT", "http://10.0.0.1:80"),
        ("NAIAD_SERVICE_HOST", "example.org"),
        ("NAIAD_SERVICE_PORTS", "4242"),
        ("NAIAD_PORT_4242_TCP_PROTO", "icmp"),
        ("NAIAD_PORT_4242", "4242"),
        ("NAIAD_NAME", "me"),
        ("NAIAD_ENV_NAIAD_TOKEN", "secret-token"),
    ],
)
def test_anything_else_is_refused(variable):
    with pytest.raises(ConfigError, match=f"environment: {variable[0]}") as error:
        load_settings(None, dict([variable]), {})
    assert "secret-token" not in str(error.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the cases are not here")
def test_the_reported_variables_are_ignored():
    text = (SHARED / "cases" / "api" / "kubernetes.env").read_text()
    assert load_settings(None, dict(line.split("=", 1) for line in text.split()), {}).port == 4242
