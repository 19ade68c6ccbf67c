"""HTTP clients for the outside world and for this machine: proxies as the environment says, but none on loopback."""

import ipaddress
import urllib.request

import httpx

TLS = httpx.create_ssl_context()
"""Made once: it takes 30 ms."""

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


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


def http_client(url: str, timeout: httpx.Timeout) -> httpx.AsyncClient:
    """A client for requests to the host of this URL.

    Args:
        url: Settles whether the client goes through a proxy.
        timeout: For each of its requests, in seconds.

    Raises:
        ValueError: The environment names a proxy that cannot be used.
    """
    # Without `trust_env`: httpx prepares every proxy that it finds, needed or not, and fails at one it does not know.
    return httpx.AsyncClient(timeout=timeout, verify=TLS, trust_env=False, proxy=proxy_for(url))


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
