"""HTTP clients for the outside world and for this machine: proxies as the environment says, but none on loopback.

Connections are kept for the next request. Each client has just one connection, and serves one caller at a time: the
pool inside of httpx looks at every connection for every request, which takes milliseconds with a thousand of them.
"""

import asyncio
import functools
import ipaddress
import ssl
import time
import urllib.request
from collections import defaultdict, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import override
from weakref import WeakKeyDictionary

import httpx

KEEP_SECONDS = 60.0
"""How long to keep a connection that nobody uses. Servers and what is between close it after a minute or more."""

LIMITS = httpx.Limits(max_connections=1, keepalive_expiry=KEEP_SECONDS)

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


@functools.cache
def tls() -> ssl.SSLContext:
    """The settings of encrypted connections. They are made once, when they are needed, since that takes 40 ms."""
    return httpx.create_ssl_context()


def check_url(name: str, url: str) -> None:
    """Find a fault that would make every request to a URL fail, before the first request.

    Args:
        name: Where the URL comes from, for the message.
        url: The URL.

    Raises:
        ValueError: It is no URL, or needs a proxy that cannot be used. The message is one line for the user.
    """
    if not _is_usable(url, ("http", "https")):
        raise ValueError(f"{name} is no http:// or https:// URL: {url}")
    proxy_for(url)


@asynccontextmanager
async def http_client(url: str, timeouts: httpx.Timeout) -> AsyncGenerator[httpx.AsyncClient]:
    """A client for requests to the host of this URL, one at a time.

    Its connection is kept, unless the body raises, or closes the client.

    Args:
        url: Settles which connections can serve, and whether they go through a proxy.
        timeouts: For each of its requests, in seconds.

    Raises:
        ValueError: The environment names a proxy that cannot be used.
    """
    proxy = proxy_for(url)
    idle = (await _idle_clients())[httpx.URL(url).copy_with(raw_path=b"/"), proxy]
    client = idle.pop()[1] if idle else _new_client(proxy)
    client.timeout = timeouts
    try:
        yield client
    except BaseException:  # a cancellation too: nobody knows what is left in the connection
        await client.aclose()
        raise
    if client.is_closed:
        return
    client.cookies.clear()
    idle.append((time.monotonic(), client))
    while idle and time.monotonic() - idle[0][0] > KEEP_SECONDS:
        await idle.popleft()[1].aclose()


def _new_client(proxy: str | None) -> httpx.AsyncClient:
    # Without `trust_env`: httpx prepares every proxy that it finds, needed or not, and fails at one it does not know.
    transport = _OnceMore(verify=tls(), trust_env=False, proxy=proxy, limits=LIMITS)
    return httpx.AsyncClient(transport=transport, trust_env=False)


class _OnceMore(httpx.AsyncHTTPTransport):
    """Sends a request once more, over a new connection, if the kept one turns out to be closed."""

    @override
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        is_new = False

        async def trace(event: str, _: object) -> None:
            nonlocal is_new
            is_new = is_new or event.endswith("connect_tcp.started")

        request.extensions["trace"] = trace
        try:
            return await super().handle_async_request(request)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            if is_new:
                raise
            return await super().handle_async_request(request)


type _Idle = defaultdict[tuple[httpx.URL, str | None], deque[tuple[float, httpx.AsyncClient]]]
"""Clients that nobody uses, by the root of their URL and the proxy: since when, the latest last."""

_idle: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[_Idle, AsyncGenerator[None]]] = WeakKeyDictionary()
"""By event loop: a connection belongs to the one that opened it."""


async def _idle_clients() -> _Idle:
    loop = asyncio.get_running_loop()
    if loop not in _idle:
        idle: _Idle = defaultdict(deque)
        _idle[loop] = idle, (closer := _closed_with_loop(idle))
        await anext(closer)
    return _idle[loop][0]


async def _closed_with_loop(idle: _Idle) -> AsyncGenerator[None]:
    try:
        yield  # until the end of the event loop, which closes its generators: see `loop.shutdown_asyncgens()`
    finally:
        _idle.pop(asyncio.get_running_loop(), None)
        for clients in idle.values():
            for _, client in clients:
                await client.aclose()


def proxy_for(url: str) -> str | None:
    """The proxy between this process and a URL, as the environment (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, …) says.

    Raises:
        ValueError: It is of a kind that cannot be used. The message is for the user.
    """
    scheme, host = httpx.URL(url).scheme, httpx.URL(url).host
    proxies = urllib.request.getproxies()
    found = next((name for name in (scheme, "all") if proxies.get(name)), None)
    if found is None or _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxy = proxies[found] if "://" in proxies[found] else f"http://{proxies[found]}"
    if not _is_usable(proxy, PROXY_SCHEMES):
        raise ValueError(
            f"{found.upper()}_PROXY names a proxy that cannot be used for {host}: name one with http://, https://, "
            "socks5:// or socks5h://, or set NO_PROXY"
        )
    return proxy


def _is_usable(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        return httpx.URL(url).scheme in schemes and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
