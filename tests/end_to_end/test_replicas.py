"""`naiad serve --replicas`: two processes behind Ray Serve, with the demo model on one thread each."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from server_process import build_environment
from waiting import PROCESS_LIMIT, wait_until

from server.scale.proxy import LOST, NO_REPLICA

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra `scale` is not installed"),
]
MINE, ONE, FEW = "token-of-mine", "token-of-one", "token-of-few"
ACCOUNTS = f"""
account = [
  {{name = "mine", token = "{MINE}"}},
  {{name = "one", token = "{ONE}", concurrency = 1}},
  {{name = "few", token = "{FEW}", limit = 5}},
]
"""
LARGE = {"width": 512, "height": 768, "steps": 50}


@dataclass(frozen=True, slots=True)
class Server:
    """A server process with replicas, and its log."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def generate(self, seed, token=MINE, timeout: float = PROCESS_LIMIT, **parameters):
        chosen = {"width": 128, "height": 128, "steps": 2, "seed": seed} | parameters
        body = {"input": "1girl, smile", "model": "nai-diffusion-3", "parameters": chosen}
        headers = {"Accept": "image/png", "Authorization": f"Bearer {token}"}
        return httpx.post(f"{self.address}/ai/generate-image", json=body, headers=headers, timeout=timeout)

    def fill(self, threads, steps):
        """Submit requests until both replicas have some that wait: `/ready` is of the one with fewer."""
        running = []
        while not httpx.get(f"{self.address}/ready", timeout=PROCESS_LIMIT).json()["waiting"]:
            size = {"width": 256, "height": 384, "steps": steps}
            running.append(threads.submit(self.generate, len(running), **size))
        return running

    def count_lines(self, line=""):
        """How often each replica's process has logged a line, in the order of their first."""
        return Counter(map(int, re.findall(rf"ServeReplica\S+ pid=(\d+)\).*{line}", self.log.read_text())))

    def list_pids(self, line=""):
        """The processes of the replicas that have logged a line, in the order of their first."""
        return list(self.count_lines(line))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    accounts = folder / "tokens.toml"
    accounts.write_text(ACCOUNTS)
    settings = {"signing_key": folder / "signing.pem", "drain_seconds": 120, "tokens": accounts, "threads": 1}
    command = [sys.executable, "-P", "-m", "server", "serve", "--demo", "--port", "0", "--device", "cpu"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--replicas", "2"], stdout=output, stderr=output, env=build_environment(**settings)
        )

    def find_address():
        assert process.poll() is None, log.read_text()
        return re.search(r"naiad listens on (http\S+)\n", log.read_text())

    try:
        yield Server(wait_until(find_address, PROCESS_LIMIT)[1], process, log)
    finally:
        process.terminate()
        process.wait(PROCESS_LIMIT)


def test_both_replicas_draw(server):
    def draw():
        with ThreadPoolExecutor(8) as threads:
            responses = list(threads.map(server.generate, range(8)))
        assert [response.status_code for response in responses] == [200] * 8
        return len(server.list_pids("POST /ai/generate-image 200")) == 2

    wait_until(draw, PROCESS_LIMIT)


def test_a_response_is_that_of_a_single_server(server):
    response = server.generate(1)
    assert response.headers.get_list("X-Request-Id") == [response.headers["X-Request-Id"]]
    refused = server.generate(1, steps=0)
    assert (refused.status_code, refused.json()["statusCode"]) == (400, 400)
    foreign = httpx.get(f"{server.address}/models", headers={"Host": "evil.example"})
    assert foreign.status_code == 403


def test_a_request_that_offers_an_upgrade_keeps_its_body(server):
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    headers["Authorization"] = f"Bearer {MINE}"
    body = {"input": "a", "parameters": {"width": 128, "height": 128, "steps": 1}}
    response = httpx.post(f"{server.address}/ai/generate-image", json=body, headers=headers, timeout=60)
    assert response.status_code == 200


def test_a_stream_arrives_event_by_event(server):
    parameters = {"width": 128, "height": 128, "steps": 8, "stream": "sse"}
    body = {"input": "a", "model": "nai-diffusion-3", "parameters": parameters}
    url = f"{server.address}/ai/generate-image-stream"
    headers = {"Authorization": f"Bearer {MINE}"}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=PROCESS_LIMIT) as response:
        pieces = list(response.iter_raw())
    assert len(pieces) > 4
    assert b"final" in b"".join(pieces[-2:])


def test_an_accounts_limits_hold_over_all_replicas(server):
    with ThreadPoolExecutor(8) as threads:
        few = list(threads.map(lambda seed: server.generate(seed, FEW).status_code, range(8)))
        one = list(threads.map(lambda seed: server.generate(seed, ONE, steps=20).status_code, range(4)))
    assert Counter(few) == {200: 5, 402: 3}
    assert one.count(200) >= 1
    assert set(one) == {200, 429}
    assert server.generate(1, ONE).status_code == 200  # each has ended


def test_a_client_that_hangs_up_cancels_its_job(server):
    with suppress(httpx.ReadTimeout):
        server.generate(1, timeout=2, **LARGE)
    wait_until(lambda: server.list_pids("POST /ai/generate-image 499"))  # 200 if it had been finished


def test_a_burst_is_divided_evenly(server):
    def count_cancelled():
        return server.count_lines("POST /ai/generate-image 499")

    def hang_up(seed):  # long before a picture is drawn, after which its replica would get another request
        with pytest.raises(httpx.ReadTimeout):
            server.generate(seed, timeout=8, **LARGE)

    before = count_cancelled()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hang_up, range(8)))
    wait_until(lambda: (count_cancelled() - before).total() == 8)
    assert list((count_cancelled() - before).values()) == [4, 4]


def test_a_killed_replica_loses_its_own_requests_and_is_replaced(server):
    before = server.list_pids()
    with ThreadPoolExecutor(32) as threads:
        running = server.fill(threads, steps=20)
        os.kill(before[0], signal.SIGKILL)
        first = next(as_completed(running)).result()  # before any that is drawn
        responses = [each.result() for each in running]
    assert (first.status_code, first.json()["message"]) == (503, LOST)
    assert {response.status_code for response in responses} == {200, 503}
    assert [server.generate(seed).status_code for seed in range(4)] == [200] * 4
    wait_until(lambda: len(server.list_pids()) > len(before), PROCESS_LIMIT)
    assert [server.generate(seed).status_code for seed in range(4)] == [200] * 4


def test_a_stop_loses_no_accepted_picture(server):
    with ThreadPoolExecutor(32) as threads:
        running = server.fill(threads, steps=8)
        server.process.terminate()
        responses = [each.result() for each in running]
    answers = Counter("drawn" if each.is_success else each.json()["message"] for each in responses)
    # on a busy machine, one may not have arrived before the signal
    assert answers["drawn"] + answers[NO_REPLICA] == len(running)
    assert answers["drawn"] >= 2
    assert server.process.wait(PROCESS_LIMIT) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.address)
