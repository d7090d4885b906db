"""What the metrics count of a server's work, read as Prometheus reads them."""

import pytest
from fake_model import GENERATE, FakeModel, build_state, start_client
from jobs import make_job
from live_server import Clock, build_get, build_post, connect, exchange, read_rest, serve
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from server.api.access import AccessRules
from server.engine.engine import Engine
from server.engine.events import MemoryRanOut, PassTaken, SharedPassFailed, WeightsChanged
from server.metrics.metrics import Metrics

BODY = {"input": "1girl", "parameters": {"width": 64, "height": 128, "steps": 3, "n_samples": 2}}


def read_samples(text):
    """The samples of a metrics page by name and labels."""
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def read_page(address):
    return read_samples(exchange(address, build_get("/metrics")).decode().partition("\r\n\r\n")[2])


def scrape(client):
    response = client.get("/metrics")
    assert response.status_code == 200
    return read_samples(response.text)


@pytest.fixture
def fake_model():
    return FakeModel()


@pytest.fixture
def client(model, fake_model):
    with start_client(build_state(model, fake_model), raise_server_exceptions=False) as client:
        yield client


def test_an_image_is_counted_with_its_wait_its_passes_and_its_file(client):
    assert client.post(GENERATE, json=BODY).status_code == 200
    samples = scrape(client)
    assert samples[("naiad_evaluations_total",)] == 3
    assert samples["naiad_jobs_total", "generate", "done"] == 1
    assert samples["naiad_images_total", "generate"] == 2
    assert samples["naiad_image_pixels_total", "generate"] == 2 * 64 * 128
    assert samples["naiad_job_wait_seconds_count", "generate"] == 1
    assert samples["naiad_job_device_seconds_count", "generate"] == 1
    assert samples["naiad_image_file_seconds_count", "png"] == 2
    assert samples["naiad_pass_seconds_count", "draw"] == 3


def test_an_upscale_is_a_job_of_its_own_kind(client):
    image = client.post(GENERATE, json=BODY, headers={"Accept": "application/json"}).json()["images"][0]
    assert client.post("/ai/upscale", json={"image": image["image"], "scale": 2}).status_code == 200
    samples = scrape(client)
    assert samples["naiad_images_total", "upscale"] == 1
    assert samples["naiad_image_pixels_total", "upscale"] == 4 * 64 * 128
    assert samples["naiad_image_file_seconds_count", "png"] == 3


def test_a_failed_job_gives_no_images_and_a_status(client, fake_model):
    fake_model.failure = RuntimeError("broken")
    assert client.post(GENERATE, json=BODY).status_code == 500
    samples = scrape(client)
    assert samples["naiad_jobs_total", "generate", "failed"] == 1
    assert ("naiad_images_total", "generate") not in samples
    assert samples["naiad_http_requests_total", GENERATE, "500"] == 1


def test_a_request_is_counted_under_its_route_whatever_its_path_is(client):
    for path in ("/nowhere/1", "/nowhere/2", "/user/objects/stories", "/user/objects/presets"):
        client.get(path)
    samples = scrape(client)
    assert samples["naiad_http_requests_total", "", "404"] == 2
    assert samples["naiad_http_requests_total", "/user/objects/{kind}", "200"] == 2


def test_a_request_that_is_refused_before_its_path_is_known_is_counted(model):
    clock = Clock()
    with serve(build_state(model, FakeModel()), clock=clock) as address:
        exchange(address, build_get("/live", "Cookie: " + "c" * 100_000))
        with connect(address) as connection:
            connection.sendall(b"GET /li")
            clock.advance(0)
            clock.advance(31)
            assert read_rest(connection).startswith(b"HTTP/1.1 408")
        samples = read_page(address)
    assert samples["naiad_http_requests_total", "", "431"] == 1
    assert samples["naiad_http_requests_total", "", "408"] == 1


def test_jobs_that_wait_and_run_are_counted_while_the_device_is_busy(model, gate):
    state = build_state(model, FakeModel(gate))
    with serve(state) as address:
        job = make_job(steps=1)
        tickets = [state.engine.submit(job) for _ in range(3)]
        wait_until(lambda: state.engine.running == 1)
        samples = read_page(address)
        assert samples[("naiad_jobs_running",)] == 1
        assert samples[("naiad_jobs_waiting",)] == 2
        assert samples["naiad_engine_state", "ready"] == 1
        assert sum(value for name, value in samples.items() if name[0] == "naiad_engine_state") == 1
        gate.release(3)
        assert all(ticket.future.result(60).images for ticket in tickets)
        assert state.engine.running == state.engine.waiting == 0


def test_a_cancelled_job_is_counted_whether_it_has_begun_or_not(model, gate):
    state = build_state(model, FakeModel(gate))
    with start_client(state) as client:
        running, waiting = (state.engine.submit(make_job()) for _ in range(2))
        wait_until(lambda: state.engine.running == 1)
        waiting.cancel()
        assert scrape(client)["naiad_jobs_total", "generate", "cancelled"] == 1
        running.cancel("request")
        gate.release(2)
        wait_until(lambda: scrape(client)["naiad_jobs_total", "generate", "cancelled"] == 2)
        samples = scrape(client)
        assert samples["naiad_cancellations_total", "disconnect"] == 1
        assert samples["naiad_cancellations_total", "request"] == 1


def test_why_a_job_was_cancelled_is_counted(model, gate):
    state = build_state(model, FakeModel(gate))
    with serve(state) as address:

        def wait_for(*name):
            wait_until(lambda: read_page(address).get(name) == 1)

        with connect(address) as connection:
            connection.sendall(build_post(GENERATE, BODY))
            wait_until(lambda: state.engine.running == 1)
        wait_for("naiad_http_requests_total", GENERATE, "499")  # nothing receives the response
        gate.release(1)
        wait_for("naiad_cancellations_total", "disconnect")
        with connect(address) as connection:
            connection.sendall(build_post(GENERATE, BODY, "X-Correlation-Id: mine"))
            wait_until(lambda: state.engine.running == 1)
            exchange(address, build_get("/queue/mine").replace(b"GET", b"DELETE", 1))
            assert read_rest(connection).startswith(b"HTTP/1.1 409")
        gate.release(1)
        wait_for("naiad_cancellations_total", "request")
        assert exchange(address, build_post(GENERATE, BODY, "Prefer: wait=0")).startswith(b"HTTP/1.1 503")
        gate.release(1)
        wait_for("naiad_cancellations_total", "deadline")


@pytest.mark.parametrize("probe", ["/live", "/ready", "/metrics"])
def test_a_probe_is_answered_while_a_step_is_held(model, gate, probe):
    state = build_state(model, FakeModel(gate))
    with serve(state) as address:
        ticket = state.engine.submit(make_job())
        wait_until(lambda: state.engine.running == 1)
        assert exchange(address, build_get(probe)).startswith(b"HTTP/1.1 200")
        assert not ticket.future.done()
        gate.release(4)
        assert ticket.future.result(60).images


def test_a_page_needs_a_token_wherever_one_is_set(model, fake_model):
    state = build_state(model, fake_model, access=AccessRules(tokens=("secret-token",)))
    with start_client(state) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer secret-token"}).status_code == 200


def test_a_page_is_in_openmetrics_if_it_is_asked_for(client):
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_shared_passes_weights_and_memory_are_counted():
    metrics = Metrics()
    for event in (
        PassTaken("draw", 3, 6, 0.2),
        PassTaken("decode", 1, 1, 0.1),
        SharedPassFailed(),
        MemoryRanOut(),
        MemoryRanOut(),
        WeightsChanged("disk", 4.0),
    ):
        metrics.observe(event)
    engine = Engine(lambda: FakeModel())
    page, _ = metrics.render(engine)
    samples = read_samples(page.decode())
    assert samples[("naiad_evaluations_total",)] == 3
    assert samples["naiad_pass_rows_bucket", "4.0"] == 0
    assert samples["naiad_pass_rows_bucket", "6.0"] == 1
    assert samples[("naiad_shared_pass_retries_total",)] == 1
    assert samples[("naiad_memory_retries_total",)] == 2
    assert samples["naiad_weights_switch_seconds_bucket", "2.5", "disk"] == 0
    assert samples["naiad_weights_switch_seconds_bucket", "5.0", "disk"] == 1
    assert samples["naiad_engine_state", "new"] == 1


def test_memory_of_a_device_is_shown_by_its_kind(client, fake_model):
    fake_model.device_memory = {"used": 1024, "reserved": 4096}
    assert client.post(GENERATE, json=BODY).status_code == 200
    wait_until(lambda: "naiad_device_memory_bytes{" in client.get("/metrics").text)
    samples = scrape(client)
    assert samples["naiad_device_memory_bytes", "used"] == 1024
    assert samples["naiad_device_memory_bytes", "reserved"] == 4096


def test_two_servers_count_apart(client, model):
    client.post(GENERATE, json=BODY)
    with start_client(build_state(model, FakeModel())) as other:
        assert ("naiad_images_total", "generate") not in scrape(other)
