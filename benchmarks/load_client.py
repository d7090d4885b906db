"""One client of `load`: requests one thing after another at random, and judges what it is answered."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from time import monotonic

import httpx
import numpy as np

from benchmarks.load_requests import (
    HEADERS,
    PICTURE,
    STREAM,
    PictureRequest,
    build_bad_request,
    read_pictures,
    read_stream,
    vary,
)
from pipelines.types import Pixels

TIMEOUT = 300.0
"""Seconds after which an answer counts as lost."""
BURST = 3


@dataclass(slots=True)
class Tally:
    """What all clients have seen.

    Attributes:
        answers: requests by kind and status, or by kind and when the client hung up.
        problems: what must not happen, as texts, by kind of problem.
        differences: the largest mean difference of a picture's pixels (0 to 255) from the expected ones, by request.
    """

    answers: Counter[str] = field(default_factory=Counter[str])
    problems: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    differences: dict[str, float] = field(default_factory=dict[str, float])
    pictures: int = 0

    def add_problem(self, kind: str, text: str) -> None:
        """Add a problem and print it."""
        self.problems.setdefault(kind, []).append(text)
        print(f"{kind}: {text}", flush=True)


@dataclass(frozen=True, slots=True)
class Load:
    """What all clients share.

    Attributes:
        expected: the pixels of each request's pictures, drawn while the server had nothing else to do.
        tolerance: the largest mean difference from them that is not wrong.
        readable: paths that a GET reads.
        can_cancel: whether the server cancels jobs by `DELETE /queue/{id}`.
    """

    address: tuple[str, int]
    requests: Sequence[PictureRequest]
    expected: Mapping[str, Sequence[Pixels]]
    tolerance: float
    readable: Sequence[str]
    can_cancel: bool
    tally: Tally


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is: the token it sends, and the address that it connects from."""

    token: str
    peer: str


class Client:
    """A client with its own connections; `random` decides everything it does."""

    def __init__(self, load: Load, identity: Identity, random: Random) -> None:
        self._load, self._tally, self._random = load, load.tally, random
        self._peer, self._headers = identity.peer, {"Authorization": f"Bearer {identity.token}"}
        self._http = httpx.AsyncClient(
            base_url="http://{}:{}".format(*load.address),
            transport=httpx.AsyncHTTPTransport(local_address=identity.peer),
            headers=self._headers,
            timeout=TIMEOUT,
        )

    async def run(self, deadline: float) -> None:
        """Act until `deadline`, then wait for the last answer."""
        shares: dict[Callable[[], Awaitable[None]], int] = {
            self._draw: 40, self._draw_other: 12, self._stream: 12, self._burst: 6, self._send_bad: 10,
            self._leave_body: 4, self._leave_waiting: 10, self._leave_answer: 6, self._leave_stream: 4,
            self._retry: 4, self._cancel: 6 * self._load.can_cancel, self._look: 4,
        }  # fmt: skip
        async with self._http:
            while monotonic() < deadline:
                (act,) = self._random.choices(list(shares), list(shares.values()))
                await act()

    def _choose(self) -> PictureRequest:
        return self._random.choice(self._load.requests)

    async def _draw(self) -> None:
        await self._request_pictures("drawn", self._choose())

    async def _draw_other(self) -> None:
        await self._request_pictures("varied", vary(self._choose(), self._random))

    async def _burst(self) -> None:
        requests = [self._choose() for _ in range(BURST)]
        await asyncio.gather(*(self._request_pictures("in a burst", each) for each in requests))

    async def _stream(self) -> None:
        request = self._choose()
        if request.path == PICTURE:
            body = {**request.body, "parameters": {**request.body["parameters"], "stream": "msgpack"}}
            await self._request_pictures("streamed", PictureRequest(request.name, STREAM, body))

    async def _request_pictures(
        self, kind: str, request: PictureRequest, correlation: str = "", refusals: Sequence[int] = ()
    ) -> None:
        """Send a request for pictures, wait for the answer, and compare the pixels with the expected ones.

        Args:
            refusals: statuses that are right too.
        """
        headers = {"X-Correlation-Id": correlation} if correlation else {}
        response = await self._send(kind, request.name, request.path, json=request.body, headers=headers)
        if response is None:
            return
        if response.status_code == 429:
            await self._wait_to_retry(response)
        elif response.status_code == 200:
            read = read_stream if request.path == STREAM else read_pictures
            self._judge(kind, request, read(response.content))
        elif response.status_code not in refusals:
            self._judge_refusal(f"{kind} {request.name}", response)

    async def _send(
        self, kind: str, name: str, path: str, method: str = "POST", **options: object
    ) -> httpx.Response | None:
        """Return the response to a request, None if there is none."""
        try:
            response = await self._http.request(method, path, **options)  # pyright: ignore[reportArgumentType]
        except httpx.TransportError as error:
            self._tally.answers[f"{kind}: lost"] += 1
            self._tally.add_problem("lost", f"{kind} {name}: {type(error).__name__} {error}")
            await asyncio.sleep(1)
            return None
        self._tally.answers[f"{kind}: {response.status_code}"] += 1
        return response

    async def _wait_to_retry(self, response: httpx.Response) -> None:
        seconds = response.headers.get("Retry-After", "")
        if not (seconds.isdecimal() and int(seconds) > 0):
            self._tally.add_problem("without Retry-After", f"{seconds!r}: {response.text}")
            return
        await asyncio.sleep(self._random.random() * min(int(seconds), 5))

    def _judge(self, kind: str, request: PictureRequest, pictures: list[Pixels] | int) -> None:
        if isinstance(pictures, int):
            self._tally.answers[f"{kind}: {pictures} in a stream"] += 1
            self._tally.add_problem("5xx", f"{kind} {request.name}: {pictures} in a stream")
            return
        self._tally.pictures += len(pictures)
        expected = self._load.expected.get(request.name)
        if expected is None:
            if not pictures:
                self._tally.add_problem("wrong", f"{kind} {request.name}: no picture")
            return
        worst = compare_pictures(pictures, expected)
        self._tally.differences[request.name] = max(self._tally.differences.get(request.name, 0.0), worst)
        if worst > self._load.tolerance:
            self._tally.add_problem(
                "wrong", f"{kind} {request.name}: differs by {worst:.2g} of 255 on average"
            )

    def _judge_refusal(self, name: str, response: httpx.Response) -> None:
        kind = "5xx" if response.status_code >= 500 else "refused"
        self._tally.add_problem(kind, f"{name}: {response.status_code} {response.text[:200]}")

    async def _send_bad(self) -> None:
        bad = build_bad_request(self._random)
        options = {"content": bad.content, "headers": dict(bad.headers)}
        response = await self._send("bad", bad.path, bad.path, bad.method, **options)
        if response is not None and response.status_code not in (bad.status, 429):
            self._judge_refusal(f"bad, for {bad.status}", response)

    async def _cancel(self) -> None:
        """Send a request, cancel it after a while, and wait for its answer."""
        correlation, request = self._make_correlation(), self._choose()
        waiting = asyncio.create_task(self._request_pictures("canceled", request, correlation, (409,)))
        await asyncio.sleep(2 * self._random.random())
        answer = await self._send("cancel", request.name, f"/queue/{correlation}", "DELETE")
        if answer is not None and answer.status_code not in (200, 404, 409):
            self._judge_refusal("cancel", answer)
        await waiting

    async def _retry(self) -> None:
        """Hang up while waiting, and send the same request again, as the same one."""
        correlation, request = self._make_correlation(), self._choose()
        head, body = self._serialize(request, correlation=correlation)
        await self._leave("to retry", head + body, self._random.random(), 1)
        await self._request_pictures("retried", request, correlation)

    async def _look(self) -> None:
        """Read what the server says of itself."""
        path = self._random.choice(self._load.readable)
        response = await self._send("looked", path, path, "GET")
        if response is not None and response.status_code != 200:
            self._judge_refusal(f"looked {path}", response)

    def _make_correlation(self) -> str:
        return f"{self._random.randrange(10**6):06}"

    async def _leave_body(self) -> None:
        """Hang up in the middle of a request's body."""
        head, body = self._serialize(self._choose())
        await self._leave("before the end of the body", head + body[: len(body) // 2], 0.3, 1)

    async def _leave_waiting(self) -> None:
        """Hang up before the answer, while the job waits, is drawn or is encoded."""
        sent = b"".join(self._serialize(self._choose()))
        await self._leave("while waiting", sent, 3 * self._random.random(), 1)

    async def _leave_answer(self) -> None:
        """Hang up at the first bytes of the answer."""
        await self._leave("at the answer", b"".join(self._serialize(self._choose())), TIMEOUT, 1)

    async def _leave_stream(self) -> None:
        """Hang up after the first bytes of a stream."""
        head, body = self._serialize(self._choose(), STREAM)
        await self._leave("in a stream", head + body, TIMEOUT, 2000)

    async def _leave(self, when: str, sent: bytes, seconds: float, received: int) -> None:
        """Send bytes on a new connection, and close it after some seconds or with the first bytes of the answer."""
        try:
            reader, writer = await asyncio.open_connection(*self._load.address, local_addr=(self._peer, 0))
            writer.write(sent)
            with suppress(TimeoutError, asyncio.IncompleteReadError):
                await asyncio.wait_for(reader.readexactly(received), seconds)
            writer.transport.abort() if self._random.random() < 0.5 else writer.close()
        except OSError as error:
            self._tally.add_problem("lost", f"hung up {when}: {type(error).__name__} {error}")
        self._tally.answers[f"hung up {when}"] += 1

    def _serialize(
        self, request: PictureRequest, path: str = "", correlation: str = ""
    ) -> tuple[bytes, bytes]:
        """Return a request's head and body as bytes."""
        body = json.dumps(request.body).encode()
        headers = {"Host": "localhost", **HEADERS, **self._headers, "Content-Length": str(len(body))}
        headers |= {"X-Correlation-Id": correlation} if correlation else {}
        lines = (f"POST {path or request.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()))
        return "\r\n".join((*lines, "", "")).encode(), body


def compare_pictures(pictures: Sequence[Pixels], expected: Sequence[Pixels]) -> float:
    """Return the largest mean difference of pixels from the expected ones; 255 if there are others."""
    if [each.shape for each in pictures] != [each.shape for each in expected]:
        return 255.0
    pairs = zip(pictures, expected, strict=True)
    return max(float(np.abs(a.astype(int) - b).mean()) for a, b in pairs)
