"""A server process in which something hangs or fails: what clients get, what /ready says, and how the process ends."""

import signal
from contextlib import ExitStack
from threading import Thread

import httpx
import pytest
from paths import ROOT
from server_process import start_process
from waiting import LIMIT, wait_until

pytestmark = pytest.mark.slow

BODY = {"input": "a", "parameters": {"width": 64, "height": 64, "steps": 2, "seed": 1}}
FAILURE_STATUS = 3
KEEP = {"engine_exit_on_failure": "false"}


class Server:
    """A server process with a fault.

    Attributes:
        responses: what requests got that `request` began.
    """

    def __init__(self, stack, folder, checkpoint, fault, settings):
        program = ("-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; "
                   "import runpy; runpy.run_module('faulty_server', run_name='__main__')", fault)  # fmt: skip
        started = start_process(checkpoint, folder, program, **settings)
        self.process, self.address = stack.enter_context(started)
        self.log, self.responses = folder / "log", []
        # one for all requests: making a client takes so long that a server may have ended before the last is made
        self._client = stack.enter_context(
            httpx.Client(base_url=self.address, timeout=LIMIT, trust_env=False)
        )
        stack.callback(self.process.kill)

    def get_ready(self):
        return self._client.get("/ready")

    def request(self):
        """Request an image on a thread."""

        def post():
            self.responses.append(self._client.post("/ai/generate-image", json=BODY))

        Thread(target=post, daemon=True).start()

    def wait_end(self):
        return self.process.wait(LIMIT)


@pytest.fixture
def start(tmp_path, demo_file):
    with ExitStack() as stack:
        yield lambda fault, **settings: Server(stack, tmp_path, demo_file, fault, settings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_weights_load_ends_the_process_at_once(start, number):
    server = start("load-hangs", drain_seconds=3600)
    ready = server.get_ready()
    assert (ready.status_code, ready.json()["details"]) == (503, {"state": "loading"})
    server.process.send_signal(number)
    assert server.wait_end() == 0
    assert "Traceback" not in server.log.read_text()


def test_weights_that_cannot_be_loaded_end_the_process_with_its_own_status(start):
    server = start("load-fails")
    assert server.wait_end() == FAILURE_STATUS
    assert "a.safetensors: truncated" in server.log.read_text()


def test_weights_that_cannot_be_loaded_may_leave_a_server_that_says_so(start):
    server = start("load-fails", **KEEP)
    ready = wait_until(
        lambda: (found := server.get_ready()).json().get("details") == {"state": "defunct"} and found
    )
    assert ready.status_code == 503
    assert ready.json()["message"] == "the model could not be loaded: a.safetensors: truncated"
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_end() == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [("step-hangs", "a step on the device has not ended"), ("device-lost", "the device has failed")],
)
def test_a_device_that_fails_gives_503_and_ends_the_process_with_its_own_status(start, fault, message):
    server = start(fault, engine_step_timeout=0.5, drain_seconds=3600)
    wait_until(lambda: server.get_ready().is_success)
    for _ in range(3):
        server.request()
    assert server.wait_end() == FAILURE_STATUS
    wait_until(lambda: len(server.responses) == 3)
    assert [response.status_code for response in server.responses] == [503] * 3
    assert any(message in response.json()["message"] for response in server.responses)


def test_a_server_whose_step_hangs_may_stay_and_say_so(start):
    server = start("step-hangs", engine_step_timeout=0.5, **KEEP)
    wait_until(lambda: server.get_ready().is_success)
    server.request()
    wait_until(lambda: server.responses)
    ready = server.get_ready()
    assert (ready.status_code, ready.json()["details"]) == (503, {"state": "hung"})
    assert httpx.get(f"{server.address}/live", timeout=LIMIT).is_success
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_end() == 0  # at once, although the step still hangs
