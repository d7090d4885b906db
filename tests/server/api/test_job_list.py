"""`GET /queue` and `DELETE /queue/{id}`: who sees and cancels which jobs, and how both requests are answered."""

from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from fake_model import GENERATE, FakeModel, build_state, start_client
from image_files import make_png
from live_server import build_get, build_post, connect, exchange, read_rest, read_until, serve
from raw_responses import find_header, parse_json
from stream_reader import read_msgpack
from waiting import LIMIT, wait_until

from server.api.access import AccessRules
from server.api.accounts import Account, Accounts
from server.api.credentials import generate_token, hash_token

ANNA, BEN, OWN = (generate_token() for _ in range(3))
ACCOUNTS = Accounts(
    account=(
        Account(name="anna", token_hash=(hash_token(ANNA),), limit=5),
        Account(name="ben", token_hash=(hash_token(BEN),)),
    )
)
RULES = AccessRules((OWN,), read_accounts=lambda: ACCOUNTS)
STREAM = f"{GENERATE}-stream"


def bearer(token):
    return (f"Authorization: Bearer {token}",)


def build_generate(*headers, path=GENERATE, **parameters):
    return build_post(path, {"input": "a", "parameters": {"width": 64, "height": 64} | parameters}, *headers)


def build_delete(name, *headers):
    return build_get(f"/queue/{name}", *headers).replace(b"GET ", b"DELETE ", 1)


def list_jobs(address, *headers):
    status, listed = parse_json(exchange(address, build_get("/queue", *headers)))
    assert status == 200
    return listed["jobs"]


@contextmanager
def run_jobs(model, gate, access, *requests):
    """Yield the address, the fake model and the responses to come; the first request runs, the others wait."""
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model, access=access)
    with serve(state) as address, ThreadPoolExecutor(8) as threads:
        try:
            responses = []
            for number, request in enumerate(requests):
                responses.append(threads.submit(exchange, address, request))
                wait_until(lambda count=number: fake_model.evaluations and state.engine.waiting == count)
            yield address, fake_model, responses
        finally:
            gate.release(10_000)


def test_a_client_sees_its_own_jobs_and_the_operator_all(model, gate):
    requests = (
        build_generate(*bearer(ANNA), steps=20, n_samples=2),
        build_generate(*bearer(BEN), "X-Correlation-Id: abc123", steps=50, width=128),
    )
    with run_jobs(model, gate, RULES, *requests) as (address, fake_model, responses):
        gate.release(5)
        wait_until(lambda: len(fake_model.evaluations) == 6)
        all_jobs = list_jobs(address, *bearer(OWN))
        assert [job["client"] for job in all_jobs] == ["account anna", "account ben"]
        (own,) = list_jobs(address, *bearer(BEN))
        gate.release(10_000)
        ids = [find_header(response.result(LIMIT), "x-job-id") for response in responses]
        assert list_jobs(address, *bearer(OWN)) == []
    assert [job["id"] for job in all_jobs] == ids
    running, waiting = all_jobs
    assert "client" not in own
    assert own["id"] == waiting["id"]
    assert (running["state"], running["place"], running["progress"]) == ("running", 1, 0.25)
    assert (waiting["state"], waiting["place"], waiting["progress"]) == ("waiting", 2, 0.0)
    assert (running["correlation_id"], waiting["correlation_id"]) == (None, "abc123")
    keys = ("task", "images", "width", "height", "steps", "model")
    assert [running[key] for key in keys] == ["generate", 2, 64, 64, 20, "nai-diffusion-3"]
    assert [waiting[key] for key in keys] == ["generate", 1, 128, 64, 50, "nai-diffusion-3"]
    assert running["seconds_to_start"] == 0
    assert 0 <= running["seconds_to_end"] <= waiting["seconds_to_start"] <= waiting["seconds_to_end"]


def test_without_accounts_the_only_user_sees_and_cancels_everything(model, gate):
    with run_jobs(model, gate, AccessRules(), build_generate(steps=9)) as (address, _, responses):
        (job,) = list_jobs(address)
        assert job["client"] == "address 127.0.0.1"
        assert parse_json(exchange(address, build_delete(job["id"]))) == (200, {"cancelled": [job["id"]]})
        assert parse_json(responses[0].result(LIMIT))[0] == 409


def test_a_token_is_needed_where_one_is_for_generating(model, gate):
    with run_jobs(model, gate, RULES, build_generate(*bearer(ANNA))) as (address, *_):
        (job,) = list_jobs(address, *bearer(ANNA))
        assert parse_json(exchange(address, build_get("/queue")))[0] == 401
        assert parse_json(exchange(address, build_delete(job["id"])))[0] == 401
        assert list_jobs(address, *bearer(ANNA))


def test_a_running_job_that_is_cancelled_stops_before_its_next_evaluation(model, gate):
    requests = build_generate(*bearer(ANNA), steps=50), build_generate(*bearer(BEN), steps=2)
    with run_jobs(model, gate, RULES, *requests) as (address, fake_model, responses):
        running = next(job for job in list_jobs(address, *bearer(OWN)) if job["state"] == "running")
        assert parse_json(exchange(address, build_delete(running["id"], *bearer(ANNA))))[0] == 200
        response = responses[0].result(LIMIT)  # the device is still at its evaluation
        assert parse_json(response) == (
            409,
            {"statusCode": 409, "message": f"cancelled by DELETE /queue/{running['id']}"},
        )
        assert find_header(response, "x-job-id") == running["id"]
        gate.release(1 + 2)  # one evaluation for the cancelled job, two for the other
        assert responses[1].result(LIMIT).startswith(b"HTTP/1.1 200")
    assert [(job.steps, step) for job, step in fake_model.evaluations] == [(50, 1), (2, 1), (2, 2)]


def test_a_waiting_job_that_is_cancelled_by_its_correlation_id_never_runs(model, gate):
    requests = (
        build_generate(*bearer(ANNA)),
        build_generate(*bearer(BEN), "X-Correlation-Id: abc123", steps=9),
    )
    with run_jobs(model, gate, RULES, *requests) as (address, fake_model, responses):
        assert parse_json(exchange(address, build_delete("abc123", *bearer(ANNA))))[0] == 404  # not hers
        status, answer = parse_json(exchange(address, build_delete("abc123", *bearer(BEN))))
        assert status == 200
        assert find_header(responses[1].result(LIMIT), "x-job-id") == answer["cancelled"][0]
        assert [job["state"] for job in list_jobs(address, *bearer(OWN))] == ["running"]
        gate.release(10_000)
        assert responses[0].result(LIMIT).startswith(b"HTTP/1.1 200")
    assert [job.steps for job in fake_model.jobs] == [28]


def test_the_operator_may_cancel_anyones_job(model, gate):
    with run_jobs(model, gate, RULES, build_generate(*bearer(ANNA))) as (address, _, responses):
        (job,) = list_jobs(address, *bearer(OWN))
        assert parse_json(exchange(address, build_delete(job["id"], *bearer(OWN))))[0] == 200
        assert parse_json(responses[0].result(LIMIT))[0] == 409


def test_a_cancelled_job_costs_nothing(model, gate):
    with run_jobs(model, gate, RULES, build_generate(*bearer(ANNA), n_samples=4)) as (address, _, responses):
        (job,) = list_jobs(address, *bearer(ANNA))
        exchange(address, build_delete(job["id"], *bearer(ANNA)))
        responses[0].result(LIMIT)
        page = parse_json(exchange(address, build_get("/user/subscription", *bearer(ANNA))))[1]
        assert page["trainingStepsLeft"]["fixedTrainingStepsLeft"] == 5


def test_a_stream_that_is_cancelled_ends_with_an_event(model, gate):
    fake_model = FakeModel(gate)
    with serve(build_state(model, fake_model)) as address, connect(address) as connection:
        connection.sendall(build_generate("X-Correlation-Id: abc123", path=STREAM, steps=50))
        gate.release(1)
        begun = read_until(connection, b"intermediate")
        (job,) = list_jobs(address)
        assert find_header(begun, "x-job-id") == job["id"]
        assert parse_json(exchange(address, build_delete("abc123")))[0] == 200
        rest = read_rest(connection)
        gate.release(10_000)
    assert b"cancelled by DELETE /queue/abc123" in rest
    assert b"final" not in rest
    assert fake_model.finished == []


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_a_job_that_has_ended_is_a_conflict_and_any_other_name_is_not_found(model, path):
    body = {"input": "a", "parameters": {"width": 64, "height": 64, "steps": 1}}
    state = build_state(model, FakeModel(), access=RULES)
    headers = {"Authorization": f"Bearer {ANNA}", "X-Correlation-Id": "abc123"}
    with start_client(state) as client:
        response = client.post(path, json=body, headers=headers)
        if path == STREAM:
            assert list(read_msgpack(response.content))[-1]["event_type"] == "final"
        job = response.headers["x-job-id"]
        assert job == response.headers["x-request-id"]
        for name in (job, "abc123"):
            assert client.delete(f"/queue/{name}", headers=headers).status_code == 409
            others = {"Authorization": f"Bearer {BEN}"}
            assert client.delete(f"/queue/{name}", headers=others).status_code == 404
        unknown = client.delete("/queue/0123456789abcdef", headers=headers)
        assert unknown.status_code == 404
        assert unknown.json()["message"].startswith("'0123456789abcdef': no such job")


def test_what_is_no_image_is_listed_too(model, gate):
    request = build_post("/ai/upscale", {"image": b64encode(make_png()).decode(), "scale": 2})
    with run_jobs(model, gate, AccessRules(), request) as (address, *_):
        (job,) = list_jobs(address)
    assert (job["task"], job["images"], job["steps"], job["model"]) == ("upscale", 1, None, None)
    assert job["width"] > 0
