"""An HTTP client for `mcp` that gives each call a failure of its own.

The transport of `mcp` takes a failed request for the end of the session, with all of its other calls. A call whose
answer breaks off, or is no answer, it leaves waiting for ever. So this client answers such a request itself, with an
error in the format of MCP, which reaches just the call that failed.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, override

import httpx
from mcp.types import ErrorData, JSONRPCError, JSONRPCMessage, JSONRPCResponse, RequestId

from bridge.failures import is_final, is_final_status, one_line
from options.http import proxy_for, tls

FAILED = 1
"""Code of an error that this client makes. Those of MCP are negative."""

NOTE_SECONDS = 10
"""How long a message that wants no answer may take. The transport sends nothing else meanwhile."""

TIMEOUT = httpx.Timeout(30, read=None)
"""Seconds. A tool may think for as long as its activity may take."""

JSON, EVENTS = "application/json", "text/event-stream"


class HttpClient(httpx.AsyncClient):
    """A client for one MCP server.

    Args:
        what: The server in words, for messages.
        url: Its URL, which settles whether the client goes through a proxy.
        headers: For every request.
        auth: How requests are authorized, where headers that stay the same do not do.

    Raises:
        ValueError: The environment names a proxy that cannot be used.
    """

    def __init__(self, what: str, url: str, headers: dict[str, str], auth: httpx.Auth | None) -> None:
        self._what = what
        # Compressed, a stream could not be added to. Connections are as many as the calls that the worker has at once.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        transport = httpx.AsyncHTTPTransport(verify=tls(), trust_env=False, limits=limits, proxy=proxy_for(url))
        headers = {"Accept-Encoding": "identity", **headers}
        super().__init__(transport=transport, trust_env=False, timeout=TIMEOUT, headers=headers, auth=auth)

    @override
    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        if request.method == "GET":
            return await self._listen(request, **options)
        if (call := _call_of(request)) is None:
            return await self._notify(request, **options)
        try:
            response = await super().send(request, **options)
            error = await self._problem(response, call)
        except Exception as failure:
            error = self._failure(failure)
        if error is not None:
            return httpx.Response(200, json=_answer(call, error), request=request)
        if _type_of(response) == EVENTS:
            response.stream = _Answered(response.stream, call, self._broken_off)
        return response

    async def _listen(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Take up a stream again that broke off, or begin that of the messages that belong to no call."""
        if "last-event-id" not in request.headers:
            return await super().send(request, **options)
        with suppress(httpx.HTTPError):
            response = await super().send(request, **options)
            if response.status_code < 400:
                return response
            await response.aclose()
        # The transport puts the number of the call in.
        content = _event(0, self._broken_off)
        return httpx.Response(200, headers={"Content-Type": EVENTS}, content=content, request=request)

    async def _notify(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send what wants no answer, such as the end of a session. Whether the server is there is for calls to find."""
        with suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout(NOTE_SECONDS):
                response = await super().send(request, **options)
                if response.status_code < 400:
                    return response
                await response.aclose()
        return httpx.Response(204, request=request)

    async def _problem(self, response: httpx.Response, call: RequestId) -> ErrorData | None:
        """What is wrong with a response, if anything. The transport knows what a 404 and a redirect mean."""
        status = response.status_code
        if 300 <= status < 400 or status == 404:
            return None
        problem, is_passing = "", False
        if status in (401, 403):
            problem = f"{self._what} refuses the credentials of its worker (HTTP {status}): check the headers there"
        elif status >= 400:
            problem = f"{self._what} answers with HTTP {status} {response.reason_phrase}".strip()
            is_passing = not is_final_status(status)
        elif _type_of(response) == JSON:
            if not _is_answer(await response.aread(), call):
                problem = f"{self._what} answers with JSON that is no answer of MCP"
        elif _type_of(response) != EVENTS:
            problem = f"{self._what} is no MCP server: it answers with {_type_of(response) or f'HTTP {status}'}"
        if not problem:
            return None
        await response.aclose()
        return failed(problem, is_passing, response.headers.get("retry-after"))

    def _failure(self, error: Exception) -> ErrorData:
        if isinstance(error, httpx.TransportError) and not is_final(error):
            return failed(f"{self._what} cannot be reached ({one_line(error)})", True)
        return failed(f"{self._what} cannot be asked: {one_line(error)}", not is_final(error))

    @property
    def _broken_off(self) -> ErrorData:
        return failed(f"the connection to {self._what} broke off before the answer", True)


def failed(message: str, is_passing: bool, retry_after: str | None = None) -> ErrorData:
    """An error that this client makes. `is_passing`: another attempt may help."""
    return ErrorData(code=FAILED, message=message, data={"is_passing": is_passing, "retry_after": retry_after})


class _Answered(httpx.AsyncByteStream):
    """The stream of events that answers a call. If the answer does not come, an error is the last event.

    But a stream whose events have ids can be taken up where it ended, as the transport then does.
    """

    def __init__(self, stream: Any, call: RequestId, error: ErrorData) -> None:
        self._stream, self._call, self._error = stream, call, error

    @override
    async def __aiter__(self) -> AsyncIterator[bytes]:
        has_ids, before = False, b"\n"
        try:
            async for chunk in self._stream:
                has_ids = has_ids or re.search(rb"[\r\n]id:", before + chunk) is not None
                before = (before + chunk)[-4:]
                yield chunk
        except httpx.TransportError:
            pass
        if not has_ids:
            yield b"\n\n" + _event(self._call, self._error)  # not read where the answer was before it

    @override
    async def aclose(self) -> None:
        await self._stream.aclose()


def _call_of(request: httpx.Request) -> RequestId | None:
    """The id of the call that a request makes, or None if it is something else."""
    message = json.loads(request.content or b"{}")
    return message.get("id") if "method" in message else None


def _is_answer(content: bytes, call: RequestId) -> bool:
    try:
        message = JSONRPCMessage.model_validate_json(content).root
    except ValueError:
        return False
    return isinstance(message, JSONRPCResponse | JSONRPCError) and str(message.id) == str(call)


def _type_of(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _answer(call: RequestId, error: ErrorData) -> dict[str, Any]:
    return JSONRPCError(jsonrpc="2.0", id=call, error=error).model_dump(mode="json")


def _event(call: RequestId, error: ErrorData) -> bytes:
    return f"event: message\ndata: {json.dumps(_answer(call, error))}\n\n".encode()
