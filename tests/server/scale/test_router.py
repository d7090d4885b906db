"""Which replica gets a request."""

import asyncio
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from warnings import catch_warnings

import pytest

if find_spec("ray") is None:
    pytest.skip("the extra `scale` is not installed", allow_module_level=True)

with catch_warnings(action="ignore"):  # of Ray's own code
    from ray.serve._private.common import DeploymentHandleSource, DeploymentID
    from ray.serve.request_router import ReplicaID

    from server.scale.router import FewestOpen

pytestmark = pytest.mark.scale
DEPLOYMENT = DeploymentID("Replica", "naiad")
IDS = {name: ReplicaID(name, DEPLOYMENT) for name in "abc"}
REPLICAS: Any = [SimpleNamespace(replica_id=replica_id) for replica_id in IDS.values()]


class Router(FewestOpen):
    """A router without Ray's processes, whose choices are names."""

    def __init__(self):
        source = DeploymentHandleSource.PROXY
        super().__init__(deployment_id=DEPLOYMENT, handle_source=source, use_replica_queue_len_cache=True)
        self.initialize_state()

    async def choose(self):
        (first,), *_ = await self.choose_replicas(REPLICAS)
        return first.replica_id.unique_id

    def send(self, name):
        self.on_send_request(IDS[name])

    def end(self, name):
        self.on_request_completed(IDS[name], "id")


async def pass_turns():
    """Let the event loop turn twice, so that what has been chosen has been sent or will never be."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_a_burst_is_divided_evenly():
    async def run():
        router = Router()
        for name in "aab":
            router.send(name)
        return Counter([await router.choose() for _ in range(6)])  # before any of them is sent

    assert asyncio.run(run()) == {"a": 1, "b": 2, "c": 3}


def test_requests_that_are_sent_count_once_until_they_end():
    async def run():
        router = Router()
        for _ in range(9):
            router.send(await router.choose())
            await pass_turns()
        before = dict(router._open)
        router.end("b")
        return before, await router.choose()

    before, chosen = asyncio.run(run())
    assert sorted(before.values()) == [3, 3, 3]
    assert chosen == "b"


def test_a_choice_whose_client_has_hung_up_counts_no_more():
    async def run():
        router = Router()
        for _ in range(5):
            await router.choose()
        await pass_turns()
        return router._open.total()

    assert asyncio.run(run()) == 0


def test_the_requests_of_other_proxies_decide_between_equals():
    async def run():
        router = Router()
        for name, count in {"a": 2, "b": 1, "c": 2}.items():
            router.on_new_queue_len_info(IDS[name], count)
        return await router.choose()

    assert asyncio.run(run()) == "b"


def test_each_idle_replica_has_its_turn():
    async def run():
        router = Router()
        chosen = []
        for _ in range(6):
            chosen.append(await router.choose())
            await pass_turns()
        return Counter(chosen)

    assert asyncio.run(run()) == {"a": 2, "b": 2, "c": 2}


def test_all_replicas_are_named_in_case_the_first_is_full():
    ranked = asyncio.run(Router().choose_replicas(REPLICAS))
    assert sorted(each.replica_id.unique_id for (each,) in ranked) == ["a", "b", "c"]
