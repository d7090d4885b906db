"""What `naiad serve --replicas` checks, and how it divides a machine, without Ray."""

import signal
from traceback import format_exception

import pytest
import typer

from server.cli import replicas
from server.cli.replicas import ReplicaFlags, run_replicas
from server.config.settings import Settings
from server.config.toml import ConfigError
from server.errors import Unavailable
from server.scale.cluster import find_reason
from server.scale.service import Scale, Service

HERE, THERE = ReplicaFlags(2), ReplicaFlags(2, cluster="10.0.0.1:6379")


class FakeCluster:
    """Ray as the command uses it: notes what is called."""

    def __init__(self, resources, end):
        self.resources, self.end, self.calls = resources, end, []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))

    def start_ray(self, cpus):
        return self._enter("start_ray", cpus)

    def join_ray(self, address):
        return self._enter("join_ray", address)

    def _enter(self, *call):
        from contextlib import nullcontext

        self.calls.append(call)
        return nullcontext()

    def count(self, resource):
        return self.resources.get(resource, 0)

    def deploy(self, service, scale, host, port):
        self.calls.append(("deploy", service, scale, host, port))
        if self.end == "fails to load":
            raise Unavailable("the model could not be loaded")
        if self.end == "has a wrong setting":
            raise ConfigError("speed.graphs")
        if self.end == "stops while loading":
            signal.raise_signal(signal.SIGTERM)

    def wait_for_loss(self, _patience):
        if self.end == "stops":
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def serve(model, monkeypatch, tmp_path):
    """Run the command with a fake Ray; returns what was called."""

    def run(flags=HERE, resources=None, end="stops", **changes):
        fake = FakeCluster(resources or {}, end)
        monkeypatch.setattr(replicas, "cluster", fake)
        settings = Settings(**({"signing_key": tmp_path / "signing.pem", "port": 0} | changes))
        run_replicas(Service(model, settings, (), {}), flags)
        return fake.calls

    return run


def find_deployed(calls):
    """The settings and the scale that were deployed."""
    (deployed,) = [call for call in calls if call[0] == "deploy"]
    return deployed[1].settings, deployed[2]


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (HERE, {"host": ("127.0.0.1", "::1")}, "name one address"),
        (HERE, {"tls": True}, "put a proxy with TLS in front"),
        (HERE, {"device": "cuda:1"}, "set auto, cpu or cuda"),
        (ReplicaFlags(0), {}, "name it with --cluster"),
        (ReplicaFlags(2, 1), {}, "--max-replicas 1 is less than --replicas 2"),
        (THERE, {"port": 4242}, "set token or tokens"),
        (THERE, {"token": "secret-token"}, "port = 0"),
        (HERE, {"device": "cuda"}, "2 need a GPU each, and Ray has 0"),
    ],
)
def test_what_replicas_do_not_support_is_refused(serve, flags, changes, message):
    with pytest.raises(ConfigError, match=message):
        serve(flags, **changes)


def test_a_signal_drains_the_replicas(serve):
    calls = serve(drain_seconds=7)
    assert [call[0] for call in calls] == ["require_ray", "start_ray", "deploy", "remove"]
    assert calls[-1] == ("remove", 7)


def test_a_signal_while_the_model_is_loaded_ends_it_at_once(serve):
    calls = serve(end="stops while loading")
    assert [call[0] for call in calls] == ["require_ray", "start_ray", "deploy"]


@pytest.mark.parametrize("end", ["fails to load", "is lost"])
def test_without_a_replica_the_status_is_that_of_a_failed_model(serve, end):
    with pytest.raises(typer.Exit) as ended:
        serve(end=end)
    assert ended.value.exit_code == 3


def test_a_setting_that_the_replicas_cannot_use_is_a_wrong_setup(serve):
    with pytest.raises(ConfigError, match=r"speed\.graphs"):
        serve(end="has a wrong setting")


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (ConfigError('speed.graphs = "on": not here'), ConfigError, 'speed.graphs = "on": not here'),
        (Unavailable("a.safetensors: truncated"), Unavailable, "a.safetensors: truncated"),
        (MemoryError("no"), Unavailable, "the replicas could not start; see the lines above"),
    ],
)
def test_what_a_replica_raises_is_found_in_a_traceback(raised, kind, message):
    found = find_reason(f"RuntimeError: it failed\n{''.join(format_exception(raised))}\nin a replica")
    assert (type(found), str(found)) == (kind, message)


def test_all_replicas_have_the_token_that_was_generated_once(serve, capsys):
    settings, _ = find_deployed(serve(host=("0.0.0.0",)))
    assert settings.token is not None
    assert settings.token in capsys.readouterr().out


def test_on_loopback_no_token_is_needed(serve):
    assert find_deployed(serve())[0].token is None


def test_the_threads_of_the_machine_are_divided(serve, monkeypatch):
    monkeypatch.setattr(replicas, "choose_threads", lambda *_: 9)
    assert find_deployed(serve(ReplicaFlags(2)))[0].threads == 4
    assert find_deployed(serve(ReplicaFlags(20)))[0].threads == 1
    assert find_deployed(serve(ReplicaFlags(2), threads=3))[0].threads == 3


@pytest.mark.parametrize(
    ("flags", "resources", "device", "scale"),
    [
        (HERE, {"CPU": 2}, "auto", Scale(2, 2, cpus=1)),
        (HERE, {"CPU": 3}, "cpu", Scale(2, 2, cpus=1, has_spare=True)),
        (HERE, {"CPU": 2, "GPU": 2}, "auto", Scale(2, 2, cpus=1, gpus=1)),
        (ReplicaFlags(2, 4), {"GPU": 8}, "cuda", Scale(2, 4, cpus=1, gpus=1, has_spare=True)),
    ],
)
def test_each_replica_takes_a_gpu_or_its_threads(serve, flags, resources, device, scale):
    assert find_deployed(serve(flags, resources, device=device, threads=1))[1] == scale


def test_on_a_cluster_the_replicas_stay(serve):
    calls = serve(THERE, port=4242, token="secret-token")
    assert [call[0] for call in calls] == ["require_ray", "join_ray", "deploy"]


def test_no_replicas_of_a_cluster_are_a_stop(serve):
    calls = serve(ReplicaFlags(0, cluster="10.0.0.1:6379"), port=4242, token="secret-token")
    assert [call[0] for call in calls] == ["require_ray", "join_ray", "remove"]
