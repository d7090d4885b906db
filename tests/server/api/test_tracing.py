"""A span for each request, with spans of its parts below it, sent without holding up any request."""

import sys
from itertools import pairwise

import pytest
from fake_model import GENERATE, FakeModel, build_state, start_client
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.api.tracing import Tracing, open_tracing

BODY = {"input": "a secret wish", "parameters": {"width": 64, "height": 64, "steps": 2}}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def client(model, exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with start_client(build_state(model, FakeModel(), tracing=Tracing(provider))) as client:
        yield client


def test_a_request_has_a_span_and_its_parts_are_below_it(client, exporter):
    response = client.post(GENERATE, json=BODY)
    *parts, span = exporter.get_finished_spans()
    assert span.name == f"POST {GENERATE}"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["naiad.request_id"] == response.headers["x-request-id"]
    assert [part.name for part in parts] == ["queue", "draw", "png"]
    assert {part.parent.span_id for part in parts} == {span.context.span_id}
    assert span.start_time <= parts[0].start_time
    assert all(before.end_time <= after.start_time for before, after in pairwise(parts))
    assert parts[-1].end_time <= span.end_time
    assert "secret" not in "".join(each.to_json() for each in (span, *parts))


def test_a_span_is_below_the_one_that_the_client_names(client, exporter):
    client.get("/key?token=pst-secret", headers={"traceparent": PARENT})
    (span,) = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert "pst-secret" not in span.to_json()


@pytest.mark.parametrize("sent", ["", "00-0-0-00", "x" * 5000, "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_an_invalid_parent_is_ignored(client, exporter, sent):
    client.get("/live", headers={"traceparent": sent})  # a probe, of which there is no trace
    assert client.get("/", headers={"traceparent": sent}).status_code == 200
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_a_stream_has_the_same_parts(client, exporter):
    assert client.post(f"{GENERATE}-stream", json=BODY).status_code == 200
    *parts, span = exporter.get_finished_spans()
    assert span.name == f"POST {GENERATE}-stream"
    assert [part.name for part in parts] == ["queue", "draw", "png"]


def test_a_refused_request_has_a_span_without_parts(client, exporter):
    assert client.post(GENERATE, json={"input": 1}).status_code == 400
    (span,) = exporter.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 400


def test_there_are_no_traces_without_a_collector():
    assert open_tracing({}) is None
    assert open_tracing({ENDPOINT: ""}) is None


def test_a_collector_without_the_packages_is_warned_of(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert open_tracing({ENDPOINT: "http://127.0.0.1:4318"}) is None
    assert f"although {ENDPOINT} is set; install the extra: pip install 'naiad[tracing]'" in caplog.text


def test_a_collector_that_does_not_answer_holds_up_no_request_and_no_stop(model, monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")  # the discard port, where nothing listens
    tracing = open_tracing({ENDPOINT: "http://127.0.0.1:9"})
    with start_client(build_state(model, FakeModel(), tracing=tracing)) as client:
        assert client.post(GENERATE, json=BODY).status_code == 200
