"""An MCP server for tests, as a process that can be killed: over stdio, or over HTTP on a loopback port.

    python mcp_server.py            # stdio
    python mcp_server.py PORT       # streamable HTTP; 0 takes a free port. The first line of output is the port.

It tells the address in `REPORTS` what its tools do. `VERSION`, `TOKEN`, `JSON`, `EVENTS` and
`PAGES` in the environment vary it.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import uvicorn
from mcp import types
from mcp.server.fastmcp import Context, FastMCP, Image
from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from pydantic import AnyUrl, BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response

VERSION = os.environ.get("VERSION", "1")
LOOPBACK = "127.0.0.1"
PICTURE = b"\x89PNG\x00\xff"


class Events(EventStore):
    """Gives the events of a stream ids, so that a client may take it up again."""

    def __init__(self) -> None:
        self._events: list[tuple[StreamId, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: StreamId, message: types.JSONRPCMessage | None) -> EventId:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        stream, _ = self._events[int(last_event_id) - 1]
        for i, (other, message) in enumerate(self._events[int(last_event_id) :], int(last_event_id) + 1):
            if other == stream and message is not None:
                await send_callback(EventMessage(message, str(i)))
        return stream


server = FastMCP(
    "test",
    host=LOOPBACK,
    json_response="JSON" in os.environ,
    event_store=Events() if "EVENTS" in os.environ else None,
    log_level="CRITICAL",
)


async def report(line: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = os.environ["REPORTS"].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{line}\n".encode())
    await writer.drain()
    return reader, writer


class Sum(BaseModel):
    total: int
    version: str


@server.tool()
async def add(a: int, b: int) -> Sum:
    """Add two numbers."""
    await report(f"add {a} {b} in process {os.getpid()}")
    return Sum(total=a + b, version=VERSION)


@server.tool()
async def greet(name: str) -> str:
    """Greet somebody."""
    return f"hello {name}"


@server.tool(structured_output=False)
async def say(text: str) -> str:
    """Say a text as it is."""
    return text


@server.tool(structured_output=False)
async def say_twice(text: str) -> list[str]:
    """Say a text in two parts."""
    return [text, text]


@server.tool(structured_output=False)
async def say_nothing() -> None: ...


@server.tool(structured_output=False)
async def draw() -> list[Any]:
    """Draw a picture."""
    return ["here it is", Image(data=PICTURE, format="png")]


@server.tool()
async def measure() -> types.CallToolResult:
    """Measure, with a picture of it."""
    picture = types.ImageContent(type="image", data="aGVsbG8=", mimeType="image/png")
    text = types.TextContent(type="text", text='{"size": 3}')
    return types.CallToolResult(content=[text, picture], structuredContent={"size": 3})


@server.tool(structured_output=False)
async def look_up() -> list[types.ContentBlock]:
    """Find resources."""
    url = AnyUrl("file:///notes.txt")
    return [
        types.EmbeddedResource(
            type="resource", resource=types.TextResourceContents(uri=url, mimeType="text/plain", text="a note")
        ),
        types.ResourceLink(type="resource_link", uri=url, name="notes"),
    ]


@server.tool()
async def fail(reason: str) -> str:
    """Fail."""
    await report(f"fail {reason}")
    raise ValueError(reason)


@server.tool()
async def busy(reason: str) -> str:
    """Be refused by the HTTP server at first."""
    return reason


@server.tool(structured_output=False)
async def whisper(loudly: bool, context: Context[Any, Any, Any]) -> str:
    """Give away what the server was given, in an error if loudly."""
    request: Request | None = context.request_context.request
    given = [*request.headers.values(), str(request.url)] if request else list(os.environ.values())
    if loudly:
        raise ValueError(" ".join(given))
    return " ".join(given)


@server.tool(structured_output=False)
async def big_result(size: int) -> str:
    """Give a text of that many bytes. A wrapped tool of the tests has the same name."""
    return "y" * size


@server.tool()
async def forget(tool: str) -> str:
    """Have a tool no longer."""
    server.remove_tool(tool)
    return f"no {tool}"


@server.tool()
async def hold(name: str) -> str:
    """Wait for the test."""
    reader, _ = await report(f"begun {name} in process {os.getpid()}")
    try:
        if await reader.readline():
            return f"{name} is done"
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await report(f"cancelled {name}")
        raise
    raise RuntimeError("the test is over")


if VERSION == "2":
    server.remove_tool("greet")

    @server.tool()
    async def part(name: str) -> str:
        """Say good-bye."""
        return f"good-bye {name}"


if "PAGES" in os.environ:

    @server._mcp_server.list_tools()  # type: ignore[no-untyped-call,untyped-decorator]  # as `mcp` has it
    async def page(request: types.ListToolsRequest) -> types.ListToolsResult:
        tools = await server.list_tools()
        number = int(request.params.cursor or 0) if request.params else 0
        return types.ListToolsResult(
            tools=tools[number : number + 1], nextCursor=str(number + 1) if number + 1 < len(tools) else None
        )


_refused = list[bytes]()


async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Tell of sessions. Refuse requests without the token, and the first call of the tool `busy`."""
    if request.headers.get("authorization", "") != os.environ.get("TOKEN", ""):
        return Response(status_code=401)
    body = await request.body()
    if b'"initialize"' in body or request.method == "DELETE":
        await report("session opened" if body else "session closed")
    if b'"busy"' in body and not _refused:
        _refused.append(body)
        return Response(status_code=503, headers={"Retry-After": "0.1"})
    return await call_next(request)


async def serve(port: int) -> None:
    app = server.streamable_http_app()
    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)
    config = uvicorn.Config(app, host=LOOPBACK, port=port, log_config=None)
    socket = config.bind_socket()
    socket.listen()
    print(socket.getsockname()[1], flush=True)
    await uvicorn.Server(config).serve([socket])


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(serve(int(sys.argv[1])))
    else:
        server.run()
