"""The offline services with faults on demand, and a record of every request."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from json import dumps
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from app import demo
from app.demo import Part

Reply = Callable[["Call"], Response | Awaitable[Response]]

type Scripted = Part | threading.Event
"""Of a stream: a part, or an event that it waits for before it goes on."""


class Call:
    """One request to the model, as a scripted reply sees it."""

    def __init__(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        self.body = body
        self.headers = headers
        self.prompt: list[dict[str, Any]] = body["prompt"]
        self.closed = threading.Event()
        """Set when the connection of a reply that hangs is closed."""

    @property
    def query(self) -> str:
        return next(str(message["content"][0]["text"]) for message in self.prompt if message["role"] == "user")

    @property
    def tool_results(self) -> list[dict[str, Any]]:
        return [part for message in self.prompt if message["role"] == "tool" for part in message["content"]]


class StandIn:
    """Both services at `url`. Model calls are answered from the script first, then by the demo model."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.lookups: list[str] = []
        self.geocoding: Reply | None = None
        self._script: deque[Reply] = deque()
        self._arrivals = threading.Condition()

    def play(self, *replies: Reply) -> None:
        """Answer the next model calls with these."""
        self._script.extend(replies)

    def wait_for(self, *, calls: int = 0, lookups: int = 0, seconds: float = 60) -> None:
        """Wait until that many model calls and city lookups have arrived."""
        with self._arrivals:
            arrived = self._arrivals.wait_for(
                lambda: len(self.calls) >= calls and len(self.lookups) >= lookups, seconds
            )
        assert arrived, f"only {len(self.calls)} model calls and {len(self.lookups)} lookups arrived"

    async def _model(self, request: Request) -> Response:
        call = Call(await request.json(), dict(request.headers))
        with self._arrivals:
            self.calls.append(call)
            self._arrivals.notify_all()
        if self._script:
            reply = self._script.popleft()(call)
            return await reply if isinstance(reply, Awaitable) else reply
        return await demo.language_model(request)

    async def _geocoding(self, request: Request) -> Response:
        with self._arrivals:
            self.lookups.append(request.query_params["name"])
            self._arrivals.notify_all()
        if self.geocoding:
            reply = self.geocoding(Call({"prompt": []}, {}))
            return await reply if isinstance(reply, Awaitable) else reply
        return await demo.geocoding(request)

    @contextmanager
    def serving(self) -> Iterator["StandIn"]:
        routes = [
            Route("/v3/ai/language-model", self._model, methods=["POST"]),
            Route("/v1/search", self._geocoding),
            Route("/v1/forecast", demo.forecast),
        ]
        with demo.serve(routes) as self.url:
            yield self

    @property
    def environment(self) -> dict[str, str]:
        return {**demo.environment(self.url), "AI_GATEWAY_API_KEY": "test-key-0123456789"}


def parts(*stream: Scripted) -> Reply:
    """A stream of just these parts, and `[DONE]`."""
    return lambda call: demo.stream(_each(stream))


def paced(seconds: float, *stream: Part) -> Reply:
    """The same, with a pause before each part."""

    async def generate() -> AsyncIterator[Part]:
        for part in stream:
            await asyncio.sleep(seconds)
            yield part

    return lambda call: demo.stream(generate())


def text_parts(*deltas: str) -> list[Part]:
    start, end = {"type": "text-start", "id": "t"}, {"type": "text-end", "id": "t"}
    return [start, *({"type": "text-delta", "id": "t", "delta": delta} for delta in deltas), end]


def text(*deltas: str, reason: str = "stop") -> Reply:
    return parts(*text_parts(*deltas), demo.finish(reason, 10, 5))


def tools(*calls: tuple[str, str, object], reason: str = "tool-calls") -> Reply:
    """Tool calls, each an id, a name and arguments (a string goes out as it is)."""
    return parts(*(part for call in calls for part in demo.tool_call(*call)), demo.finish(reason, 10, 5))


def status(code: int, type: str = "internal_server_error", message: str = "something is wrong") -> Reply:
    return lambda call: demo.gateway_error(code, type, message)


def cut_off(*stream: Scripted) -> Reply:
    """A stream that breaks off in the middle, connection and all."""

    async def generate() -> AsyncIterator[str]:
        async for chunk in demo.stream(_each(stream)).body_iterator:
            if b"[DONE]" not in (chunk if isinstance(chunk, bytes) else str(chunk).encode()):
                yield str(chunk)
        raise ConnectionAbortedError

    return lambda call: StreamingResponse(generate(), media_type="text/event-stream")


def hang(*stream: Part) -> Reply:
    """A stream that sends these parts and then nothing more, until the client gives up."""

    def reply(call: Call) -> Response:
        async def generate() -> AsyncIterator[str]:
            try:
                async for chunk in demo.stream(_each(stream)).body_iterator:
                    if "[DONE]" not in str(chunk):
                        yield str(chunk)
                await asyncio.Event().wait()
            finally:
                call.closed.set()

        return StreamingResponse(generate(), media_type="text/event-stream")

    return reply


def held(release: threading.Event, reply: Reply) -> Reply:
    """The same reply, but not before `release` is set."""

    async def wait(call: Call) -> Response:
        await asyncio.to_thread(release.wait)
        answer = reply(call)
        return await answer if isinstance(answer, Awaitable) else answer

    return wait


def json(value: object, code: int = 200) -> Reply:
    return lambda call: JSONResponse(value, code)


async def _each(stream: tuple[Scripted, ...]) -> AsyncIterator[Part]:
    for part in stream:
        if isinstance(part, threading.Event):
            await asyncio.to_thread(part.wait)
        else:
            yield part


def event(part: object, end: str = "\n", field: str = "data: ") -> bytes:
    """A part as an encoder in JavaScript writes it: what JSON allows to stand raw is not escaped."""
    return f"{field}{dumps(part, ensure_ascii=False)}{end}{end}".encode()


def raw(*chunks: bytes | threading.Event, media_type: str = "text/event-stream") -> Reply:
    """A stream of just these bytes, each of the chunks on its own. Waits for an event between them."""

    async def generate() -> AsyncIterator[bytes]:
        for chunk in chunks:
            if isinstance(chunk, threading.Event):
                await asyncio.to_thread(chunk.wait)
            else:
                yield chunk

    return lambda call: StreamingResponse(generate(), media_type=media_type)


def unescaped(*stream: Part) -> Reply:
    """The same as `parts`, with every separator and every letter raw."""
    return raw(*map(event, stream), b"data: [DONE]\n\n")
