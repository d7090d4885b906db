"""A replica's health, and the application that Ray Serve's own tools deploy."""

import asyncio
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from warnings import catch_warnings

import pytest
from fake_model import FakeModel
from paths import ROOT

from server.config.settings import Settings
from server.config.toml import ConfigError
from server.engine.engine import Engine
from server.errors import Unavailable
from server.scale.service import Scale, Service

if find_spec("ray") is None:
    pytest.skip("the extra `scale` is not installed", allow_module_level=True)

with catch_warnings(action="ignore"):  # of Ray's own code
    import yaml
    from ray.serve import schema

    from server.scale import application, deployment
    from server.scale.application import Arguments
    from server.scale.deployment import Replica, build_application

pytestmark = pytest.mark.scale


@pytest.fixture
def check(model, monkeypatch):
    """Check the health of a replica whose engine loads with a function."""

    def check(load):
        engine = Engine(load)
        state = SimpleNamespace(engine=engine, limits=None)
        monkeypatch.setattr(deployment, "build_app_state", lambda *_: state)
        context = SimpleNamespace(replica_tag="a")
        monkeypatch.setattr(deployment.serve, "get_replica_context", lambda: context)
        replica = Replica(Service(model, Settings(), (), {}))
        engine.start()
        try:
            asyncio.run(replica.check_health())
        finally:
            engine.stop()

    return check


def test_a_replica_whose_model_is_loaded_is_healthy(check):
    check(FakeModel)


def test_a_replica_whose_model_cannot_be_loaded_is_not(check):
    def fail():
        raise ValueError("no such device")

    with pytest.raises(Unavailable, match="the model could not be loaded: no such device"):
        check(fail)


def read_options(built: Any):
    return built._bound_deployment._deployment_config


def test_the_engine_refuses_requests_before_ray_does(model):
    settings = Settings(drain_seconds=7)
    config = read_options(build_application(Service(model, settings, (), {}), Scale(2, 2)))
    assert config.max_ongoing_requests >= settings.api.connections + settings.engine.queue_limit
    assert config.graceful_shutdown_timeout_s == 7
    assert (config.num_replicas, config.max_surge_percent) == (2, 0)
    assert not config.deployment_actors


@pytest.mark.parametrize(("replicas", "percent"), [(1, 100), (3, 34), (16, 7)])
def test_with_room_for_another_replica_one_starts_before_an_old_one_stops(model, replicas, percent):
    scale = Scale(replicas, replicas, has_spare=True)
    assert (
        read_options(build_application(Service(model, Settings(), (), {}), scale)).max_surge_percent
        == percent
    )


def test_replicas_are_added_under_load(model):
    config = read_options(
        build_application(Service(model, Settings(), (), {}), Scale(2, 5))
    ).autoscaling_config
    assert (config.min_replicas, config.max_replicas) == (2, 5)


def test_accounts_have_a_ledger(model, tmp_path):
    settings = Settings(tokens=tmp_path / "tokens.toml")
    config = read_options(build_application(Service(model, settings, (), {}), Scale(2, 2)))
    assert [actor.name for actor in config.deployment_actors] == ["limits"]


def test_a_cluster_needs_a_token(monkeypatch):
    monkeypatch.setattr(application.os, "environ", {})
    with pytest.raises(ConfigError, match="set NAIAD_TOKEN_FILE or NAIAD_TOKENS"):
        application.build(Arguments(demo=True))


def test_the_application_of_a_cluster_takes_its_settings_from_variables(monkeypatch):
    monkeypatch.setattr(application.os, "environ", {"NAIAD_TOKEN": "secret-token", "NAIAD_DEVICE": "cpu"})
    built = application.build(Arguments(demo=True, replicas=3))
    assert read_options(built).num_replicas == 3


def test_the_example_for_kubernetes_deploys_this_application():
    service = yaml.safe_load((ROOT / "deploy" / "kuberay.yaml").read_text("utf-8"))["spec"]
    config: Any = schema.ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    (deployed,) = config.applications
    assert deployed.import_path == f"{application.__name__}:{application.build.__name__}"
    workers = service["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"]
    assert Arguments.model_validate(deployed.args).replicas == workers
