"""Sessions with MCP servers: one for each server and process, shared by all calls, and opened anew when it broke."""

import asyncio
import errno
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pydantic
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import ClientSession, McpError, StdioServerParameters, stdio_client, types
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from bridge.failures import is_final, one_line
from bridge.redaction import keep_secret
from options.http import check_url
from options.mcp_http import FAILED, HttpClient

OPEN_SECONDS = 60
"""How long a server may take to be ready. A command may have to install itself first."""

CLOSE_SECONDS = 5
"""How long the end of a session may take, for each of asking and forcing."""

CANCEL_SECONDS = 5
"""How long it may take to tell a server that a call is cancelled. Then its session is given up."""

UNKNOWN_SESSION = 32600
"""Code with which `mcp` reports HTTP 404: the server was started anew, or has no MCP at this URL."""

SECRETS = ("auth", "cookie", "credential", "key", "password", "secret", "signature", "token")
"""A header, a variable or a parameter of a URL with one of these words in its name is a secret."""


type Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


class McpServerError(Exception):
    """A server cannot be used, or a call to it was lost.

    `is_retryable`: another attempt may help. `is_doubtful`: it may also be a mistake that somebody has to mend.
    """

    def __init__(
        self, message: str, is_retryable: bool, retry_after: str | None = None, *, is_doubtful: bool = False
    ) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable
        self.retry_after = retry_after
        self.is_doubtful = is_doubtful


class McpToolError(Exception):
    """A server's answer to a call: an error, for the model to read."""

    is_retryable = False


# ── Servers ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class HttpServer:
    """An MCP server behind a URL (streamable HTTP).

    `headers` go with every request. `auth` is for what changes, such as a token that runs out: the providers for OAuth
    of the package `mcp` are of this kind.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: httpx.Auth | None = field(default=None, repr=False)

    def check(self, name: str) -> None:
        """ValueError: the URL, or the proxy to it, cannot be used. Also keeps its secrets out of errors and results."""
        check_url(f"the URL of the MCP server {name!r}", self.url)
        for parameter, value in [*self.headers.items(), *httpx.URL(self.url).params.multi_items()]:
            _keep(name, parameter, value)

    @asynccontextmanager
    async def connect(self, what: str) -> AsyncIterator[Streams]:
        """Connect to the server, which is `what` in words."""
        async with (
            HttpClient(what, self.url, dict(self.headers), self.auth) as client,
            streamable_http_client(self.url, http_client=client) as (read, write, _),
        ):
            yield read, write


@dataclass(frozen=True)
class StdioServer:
    """An MCP server that the worker starts as a process, and speaks to over its standard input and output.

    It gets `env` and a few harmless variables of the worker, such as `PATH`, but not the rest of its environment.
    """

    command: str = field(repr=False)
    args: Sequence[str] = field(default=(), repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | Path | None = field(default=None, repr=False)

    def check(self, name: str) -> None:
        """Keep its secrets out of errors and results."""
        for variable, value in self.env.items():
            _keep(name, variable, value)

    def connect(self, what: str) -> AbstractAsyncContextManager[Streams]:
        """Start the server."""
        return stdio_client(
            StdioServerParameters(command=self.command, args=[*self.args], env=dict(self.env), cwd=self.cwd)
        )


def _keep(server: str, name: str, value: str) -> None:
    if any(word in name.lower() for word in SECRETS):
        for secret in (value, value.rpartition(" ")[2]):  # `Bearer …`, and what comes after it
            keep_secret(f"{server}.{name}", secret)


# ── Sessions ─────────────────────────────────────────────────────────────────────────────────────────────


class Connection:
    """The way to one server. Opens a session when it is needed, and keeps it."""

    def __init__(self, name: str, server: HttpServer | StdioServer) -> None:
        server.check(name)
        self._what = f"the MCP server {name!r}"
        self._server = server
        self._session: asyncio.Task[_Session] | None = None
        self._given_up: set[_Session] = set()

    async def list_tools(self) -> list[types.Tool]:
        """All tools of the server. `ai.mcp` takes only the first page of them.

        Raises:
            McpServerError: The server cannot be used.
        """
        tools, cursors = list[types.Tool](), set[str]()
        cursor: str | None = None
        while True:
            page = types.PaginatedRequestParams(cursor=cursor) if cursor else None
            try:
                found = await self._request(types.ListToolsRequest(params=page), types.ListToolsResult)
            except McpToolError as error:
                raise McpServerError(f"{self._what} does not list its tools: {error}", is_retryable=False) from None
            tools += found.tools
            if (cursor := found.nextCursor) is None:
                return tools
            if cursor in cursors:
                raise McpServerError(f"{self._what} lists its tools in a circle", is_retryable=False)
            cursors.add(cursor)

    async def call_tool(self, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Call a tool. If this is cancelled, the server is told.

        Raises:
            McpServerError: The server cannot be used, or the call was lost.
            McpToolError: The server has no such tool, or refuses the call.
        """
        call = types.CallToolRequest(params=types.CallToolRequestParams(name=tool, arguments=arguments))
        # Not `ClientSession.call_tool()`: that asks for the list of tools after a call, and may fail at that.
        return await self._request(call, types.CallToolResult)

    async def close(self) -> None:
        if self._session is not None and not self._session.done():
            self._session.cancel()
            await asyncio.wait([self._session])
        self._give_up(self._session)
        await asyncio.gather(*(session.close() for session in self._given_up))
        self._given_up.clear()

    async def _request[R: pydantic.BaseModel](
        self, request: types.ListToolsRequest | types.CallToolRequest, result: type[R]
    ) -> R:
        for _ in range(2):
            opening = self._session
            if opening is None or _is_over(opening):
                self._give_up(opening)
                self._session = opening = asyncio.create_task(_Session.opened(self._what, self._server))
            # Others may wait for it, too: one that is cancelled must not end it.
            session = await asyncio.shield(opening)
            try:
                return await session.request(types.ClientRequest(request), result)
            except _NotTaken:  # the server has forgotten the session, or is another process by now
                self._give_up(opening)
        raise McpServerError(f"{self._what} forgets a session as soon as it is open", is_retryable=True)

    def _give_up(self, opening: "asyncio.Task[_Session] | None") -> None:
        if opening is None:
            return
        if opening is self._session:
            self._session = None
        self._given_up = {session for session in self._given_up if not session.is_closed}
        if not opening.cancelled() and opening.exception() is None:
            self._given_up.add(opening.result())
            opening.result().give_up()


def _is_over(opening: "asyncio.Task[_Session]") -> bool:
    if not opening.done():
        return False
    return opening.cancelled() or opening.exception() is not None or opening.result().is_over


class _NotTaken(Exception):
    """The session is over, and the server did not take the request."""


class _Session:
    """A session, and the task that owns it: `anyio` wants it to be closed by the task that opened it."""

    def __init__(self, what: str, server: HttpServer | StdioServer) -> None:
        self._what, self._server = what, server
        self._client: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._failure: McpServerError | None = None
        self._owner = asyncio.create_task(self._own())
        self._requests = 0
        self.is_over = False
        """Takes no more requests."""

    @classmethod
    async def opened(cls, what: str, server: HttpServer | StdioServer) -> "_Session":
        """Open a session. McpServerError: it cannot be opened."""
        session = cls(what, server)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await asyncio.shield(session._client)
        except BaseException as error:
            session._owner.cancel()
            if isinstance(error, TimeoutError):
                raise McpServerError(f"{what} was not ready within {OPEN_SECONDS} s", is_retryable=True) from None
            raise
        return session

    async def _own(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                read, write = await stack.enter_async_context(self._server.connect(self._what))
                client = await stack.enter_async_context(ClientSession(read, write))
                await client.initialize()
                self._client.set_result(client)
                await self._closing.wait()
        except asyncio.CancelledError:
            self._client.cancel()
            raise
        except (Exception, BaseExceptionGroup) as error:
            self._failure = self._failure_of(error)
            if not self._client.done():
                self._client.set_exception(self._failure)
                self._client.exception()  # asyncio logs one that nobody has asked for, as after a cancellation
        finally:
            self.is_over = True

    async def request[R: pydantic.BaseModel](self, request: types.ClientRequest, result: type[R]) -> R:
        """Send a request, and wait for the answer."""
        self._requests += 1
        try:
            return await self._answer(self._client.result(), request, result)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            self.is_over = True
            raise _NotTaken from None
        except McpError as error:
            if error.error.code == UNKNOWN_SESSION:
                raise _NotTaken from None
            if error.error.code == types.CONNECTION_CLOSED:
                self.is_over = True
                raise self._lost from None
            raise self._error_of(error.error) from None
        finally:
            self._requests -= 1
            if self.is_over:
                self.give_up()

    async def _answer[R: pydantic.BaseModel](
        self, client: ClientSession, request: types.ClientRequest, result: type[R]
    ) -> R:
        numbers: list[int] = []

        async def send() -> R:
            numbers.append(client._request_id)  # private: the id that the next request gets
            return await client.send_request(request, result)

        sent = asyncio.create_task(send())
        try:
            # If the session breaks down, not all of its requests are told.
            await asyncio.wait({sent, self._owner}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            sent.cancel()
            for number in numbers:
                await self._tell_cancelled(client, number)
            raise
        if sent.done():
            return sent.result()
        sent.cancel()
        raise self._failure or self._lost

    async def _tell_cancelled(self, client: ClientSession, number: int) -> None:
        params = types.CancelledNotificationParams(requestId=number, reason="the call was cancelled")
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                await client.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))
        except (TimeoutError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            self.is_over = True

    # ── Ends ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_closed(self) -> bool:
        return self._owner.done()

    def give_up(self) -> None:
        """Take no more requests, and close when those that are under way have ended."""
        self.is_over = True
        if not self._requests:
            self._closing.set()

    async def close(self) -> None:
        self.is_over = True
        self._closing.set()
        await asyncio.wait([self._owner], timeout=CLOSE_SECONDS)
        self._owner.cancel()
        await asyncio.wait([self._owner], timeout=CLOSE_SECONDS)

    # ── Failures ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _lost(self) -> McpServerError:
        return McpServerError(f"{self._what} ended before it answered", is_retryable=True)

    def _error_of(self, error: types.ErrorData) -> McpServerError | McpToolError:
        if error.code == FAILED:
            data = error.data if isinstance(error.data, dict) else {}
            return McpServerError(error.message, bool(data.get("is_passing")), data.get("retry_after"))
        if error.code == types.INTERNAL_ERROR:
            return McpServerError(f"{self._what} failed: {error.message}", is_retryable=True)
        return McpToolError(error.message)

    def _failure_of(self, error: BaseException) -> McpServerError:
        """Why a session did not open, or broke down."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        problem, is_retryable = f"cannot be used: {one_line(error)}", not is_final(error)
        match error:
            case McpError(error=types.ErrorData(code=code)) if code == UNKNOWN_SESSION:
                problem, is_retryable = "is not at its URL (HTTP 404): check the URL on the worker", False
            case (
                anyio.ClosedResourceError()
                | anyio.BrokenResourceError()
                | McpError(error=types.ErrorData(code=types.CONNECTION_CLOSED))
            ):
                if self._client.done():
                    return self._lost
                problem = "ended before it was ready: see the standard error of the worker for what it wrote"
                return McpServerError(f"{self._what} {problem}", True, is_doubtful=True)
            case McpError(error=reported):
                if isinstance(failure := self._error_of(reported), McpServerError):
                    return failure
                problem, is_retryable = f"opens no session: {failure}", False
            case httpx.HTTPStatusError():  # of a redirect: see HttpClient for the others
                problem, is_retryable = "redirects to another address: name that on the worker", False
            case OSError(errno=errno.ENOENT | errno.EACCES | errno.ENOTDIR | errno.ENOEXEC as number):
                name = errno.errorcode[number]
                problem = f"cannot be started ({name}): check its command and its folder on the worker"
                is_retryable = False
        return McpServerError(f"{self._what} {problem}", is_retryable)
