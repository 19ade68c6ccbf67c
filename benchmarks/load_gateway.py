"""A gateway that takes its time, and the geocoding service, in a process of its own.

    python benchmarks/load_gateway.py --first 10 --tokens 60 --rate 10

Says its URL in a line of JSON when it serves, and ends with its standard input. GET /stats tells what came since the
last POST /reset, whose body may name other options as JSON. It shares the machine with what is measured, so it is a
bare protocol with answers that are rendered beforehand, and has one timer for all streams.
"""

import argparse
import asyncio
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from urllib.parse import parse_qs, urlsplit

import load_work

MAX_HEAD, MAX_BODY = 16_384, 10_000_000
GRAIN = 0.005
"""Seconds. What is due within this time goes out together."""

type Part = dict[str, object]


@dataclass(frozen=True)
class Options:
    """What `--help` says."""

    first: float = 10
    tokens: int = 60
    rate: float = 10
    limit: int = 0


@dataclass
class Stats:
    """What came so far."""

    calls: dict[str, list[int]] = field(default_factory=dict)
    """Model calls of each agent: those for a tool call, those for the answer."""
    answers: int = 0
    """Streams of the latter kind that went out whole."""
    in_flight: int = 0
    peak: int = 0
    tools: int = 0
    refused: int = 0
    connections: int = 0
    """Those that carried a call."""


class Pacer:
    """Goes on with each stream after the same time, so that a queue does for all of them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._queue = deque[tuple[float, Stream]]()

    def add(self, since: float, stream: "Stream") -> None:
        self._queue.append((since + self._seconds, stream))
        if len(self._queue) == 1:
            self._wait()

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(max(self._queue[0][0], loop.time() + GRAIN), self._go_on)

    def _go_on(self) -> None:
        now = asyncio.get_running_loop().time()
        for _ in range(len(self._queue)):
            due, stream = self._queue[0]
            if due > now:
                break
            self._queue.popleft()
            stream.go_on(due)
        if self._queue:
            self._wait()


class Gateway:
    """The answers, and the state of one measurement."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.stats = Stats()
        self.first, self.next = Pacer(options.first), Pacer(1 / options.rate)
        self._latest = deque[float](maxlen=options.limit or None)
        delta: Part = {"type": "text-delta", "id": "t", "delta": load_work.TOKEN}
        begin = chunk(STREAM_START, {"type": "text-start", "id": "t"}, delta)
        end = chunk({"type": "text-end", "id": "t"}, finish("stop", options.tokens))
        self.answer = [HEAD + begin, *([chunk(delta)] * (options.tokens - 1)), end + END]

    def tool_call(self, agent: str) -> list[bytes]:
        id, text = f"call-{agent}", json.dumps({"city": f"City {agent}"})
        parts: list[Part] = [
            STREAM_START,
            {"type": "tool-input-start", "id": id, "toolName": load_work.TOOL},
            {"type": "tool-input-delta", "id": id, "delta": text},
            {"type": "tool-input-end", "id": id},
            {"type": "tool-call", "toolCallId": id, "toolName": load_work.TOOL, "input": text},
        ]
        return [HEAD + chunk(*parts, finish("tool-calls", 20)) + END]

    def refuses(self) -> bool:
        """Whether this request is over the limit of requests a second."""
        if not self.options.limit:
            return False
        now = asyncio.get_running_loop().time()
        if len(self._latest) == self.options.limit and now - self._latest[0] < 1:
            self.stats.refused += 1
            return True
        self._latest.append(now)
        return False


class Stream:
    """An answer on its way. `over` is called in the end."""

    def __init__(
        self, gateway: Gateway, transport: asyncio.Transport, chunks: list[bytes], over: Callable[[], None]
    ) -> None:
        self._gateway, self._transport, self._chunks, self._over = gateway, transport, chunks, over
        self._sent = 0
        gateway.stats.in_flight += 1
        gateway.stats.peak = max(gateway.stats.peak, gateway.stats.in_flight)
        gateway.first.add(asyncio.get_running_loop().time(), self)

    def go_on(self, now: float) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._chunks[self._sent])
        self._sent += 1
        if self._sent < len(self._chunks):
            self._gateway.next.add(now, self)
            return
        self._gateway.stats.answers += len(self._chunks) > 1
        self.end()
        self._over()

    def end(self) -> None:
        self._gateway.stats.in_flight -= 1


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

STREAM_START: Part = {"type": "stream-start", "warnings": []}


def framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


END = framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def chunk(*parts: Part) -> bytes:
    return framed("".join(f"data: {json.dumps(part)}\n\n" for part in parts).encode())


def finish(reason: str, tokens: int) -> Part:
    usage = {"inputTokens": {"total": 100}, "outputTokens": {"total": tokens}}
    return {"type": "finish", "finishReason": {"unified": reason}, "usage": usage}


def whole(status: str, value: object, *headers: str) -> bytes:
    body = json.dumps(value).encode()
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def error(status: str, type: str, message: str, *headers: str) -> bytes:
    return whole(status, {"error": {"message": message, "type": type}}, *headers)


class BadRequest(Exception):
    """What came is not HTTP as this gateway reads it, or not a request that it knows."""


class Connection(asyncio.Protocol):
    """One connection: requests one after the other, each answered before the next is read."""

    gateway: Gateway
    """Of all connections. A reset makes another."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._stream: Stream | None = None
        self._counted_by: Gateway | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.end()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._go_on()

    def _go_on(self) -> None:
        try:
            while self._stream is None and not self._transport.is_closing() and (request := self._read()):
                self._answer(*request)
        except BadRequest as problem:
            self._transport.write(error("400 Bad Request", "invalid_request_error", str(problem), "Connection: close"))
            self._transport.close()

    def _read(self) -> tuple[str, str, bytes] | None:
        """Method, target and body of the next request, if all of it has come."""
        head, separator, _ = self._buffer.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD:
            raise BadRequest("the head is too long")
        if not separator:
            return None
        line, *lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"(GET|POST) (/\S*) HTTP/1\.1", line)
        if match is None:
            raise BadRequest("not a GET or POST of HTTP/1.1")
        headers = dict(fields(lines))
        if "host" not in headers or "transfer-encoding" in headers or "expect" in headers:
            raise BadRequest("no Host, or a body without Content-Length, or Expect")
        length = headers.get("content-length", "0" if match[1] == "GET" else "none")
        if not re.fullmatch(r"[0-9]{1,8}", length) or int(length) > MAX_BODY:
            raise BadRequest("no usable Content-Length")
        end = len(head) + 4 + int(length)
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[len(head) + 4 : end])
        del self._buffer[:end]
        return match[1], match[2], body

    def _answer(self, method: str, target: str, body: bytes) -> None:
        url = urlsplit(target)
        if self._counted_by is not self.gateway and url.path not in ("/stats", "/reset"):
            self._counted_by = self.gateway
            self.gateway.stats.connections += 1
        match method, url.path:
            case "POST", "/v3/ai/language-model":
                self._answer_model(body)
            case "GET", "/v1/search":
                names = parse_qs(url.query).get("name")
                if names is None:
                    raise BadRequest("no name")
                self.gateway.stats.tools += 1
                place = {
                    "name": names[0],
                    "country": "Country",
                    "latitude": 1.5,
                    "longitude": 2.5,
                    "population": 1234567,
                }
                self._transport.write(whole("200 OK", {"results": [place]}))
            case "GET", "/stats":
                self._transport.write(whole("200 OK", asdict(self.gateway.stats)))
            case "POST", "/reset":
                try:
                    Connection.gateway = Gateway(Options(**json.loads(body or "{}")))
                except (ValueError, TypeError) as problem:
                    raise BadRequest(f"no options: {problem}") from problem
                self._transport.write(whole("200 OK", {}))
            case _:
                self._transport.write(error("404 Not Found", "not_found_error", "there is nothing here"))

    def _answer_model(self, body: bytes) -> None:
        gateway = self.gateway
        try:
            prompt = json.loads(body)["prompt"]
            query = next(message["content"][0]["text"] for message in prompt if message["role"] == "user")
            agent, answers = re.findall(r"City (\d+)", query)[0], prompt[-1]["role"] == "tool"
        except (ValueError, LookupError, TypeError, StopIteration) as problem:
            raise BadRequest(f"not a prompt of an agent: {problem!r}") from problem
        if gateway.refuses():
            retry = "Retry-After: 1"
            self._transport.write(error("429 Too Many Requests", "rate_limit_exceeded", "too many requests", retry))
            return
        gateway.stats.calls.setdefault(agent, [0, 0])[answers] += 1
        chunks = gateway.answer if answers else gateway.tool_call(agent)
        self._stream = Stream(gateway, self._transport, chunks, self._over)

    def _over(self) -> None:
        self._stream = None
        self._go_on()


def fields(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(f"not a header: {line[:100]}")
        yield name.lower(), value.strip()


async def serve(options: Options) -> None:
    Connection.gateway = Gateway(options)
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=4096)
    host, port = server.sockets[0].getsockname()
    print(json.dumps({"url": f"http://{host}:{port}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A slow gateway for the load benchmark.")
    parser.add_argument("--first", type=float, default=10, help="seconds to the first token (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=60, help="of an answer (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=10, help="tokens a second (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="requests a second, 0 for any (default: %(default)s)")
    asyncio.run(serve(Options(**vars(parser.parse_args()))))
