"""What a proxy of Ray Serve answers in place of Ray."""

import asyncio
from typing import Any

from starlette.testclient import TestClient
from uvicorn.config import HTTP_PROTOCOLS, Config

from server.api.protocol import Protocol
from server.scale import proxy
from server.scale.proxy import translate_errors


def answer(status: int | None = 200, content_type=b"application/json", body=b"{}", headers=()):
    """An application that responds like this, or not at all if there is no status."""

    async def app(_scope, _receive, send):
        if status is None:
            return
        sent = [(b"content-type", content_type), *headers]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": body})

    return app


def get(app, path="/ready"):
    return TestClient(translate_errors(app)).get(path)


def test_a_replicas_response_is_passed_on_with_one_id():
    response = get(
        answer(418, body=b'{"a":1}', headers=[(b"x-request-id", b"ours"), (b"x-request-id", b"rays")])
    )
    assert (response.status_code, response.json()) == (418, {"a": 1})
    assert response.headers.get_list("x-request-id") == ["ours"]


def test_a_request_that_no_replica_takes_gets_nais_form_of_error():
    for status in (404, 503):
        response = get(answer(status, b"text/plain; charset=utf-8", b"Ping http://.../-/routes"))
        assert response.status_code == 503
        assert response.json() == {"statusCode": 503, "message": proxy.NO_REPLICA}
        assert response.headers["Retry-After"] == "2"


def test_a_request_whose_replica_has_ended_gets_503():
    response = get(answer(None))
    assert (response.status_code, response.json()["message"]) == (503, proxy.LOST)
    assert get(answer(None), "/v1/models").json()["error"]["message"] == proxy.LOST


def test_rays_own_probe_is_left_alone():
    response = get(answer(200, b"text/plain", b"success"), "/-/healthz")
    assert (response.status_code, response.text) == (200, "success")


def test_a_client_cannot_change_what_ray_does_with_its_request():
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope, receive, send):
        seen.extend(header for header in scope["headers"] if header[0].startswith(b"x-"))
        await answer()(scope, receive, send)

    headers = {"x-request-timeout-seconds": "1", "x-request-disconnect-disabled": "?0", "x-other": "kept"}
    TestClient(translate_errors(app)).get("/ready", headers=headers)
    assert seen == [(b"x-other", b"kept"), (b"x-request-disconnect-disabled", b"?1")]


def test_what_is_no_http_is_passed_on():
    seen = []

    async def app(scope, _receive, _send):
        seen.append(scope["type"])

    unused: Any = None

    async def connect():
        await translate_errors(app)({"type": "websocket"}, unused, unused)

    asyncio.run(connect())
    assert seen == ["websocket"]


def test_the_proxy_speaks_the_servers_own_protocol(monkeypatch):
    monkeypatch.setattr(proxy, "HTTP_PROTOCOLS", protocols := dict(HTTP_PROTOCOLS))
    (middleware,) = proxy.build_middleware()
    assert middleware.cls is translate_errors
    http: Any = protocols["auto"]
    config = Config(answer(), http=http, log_config=None)
    config.load()
    assert config.http_protocol_class is Protocol
