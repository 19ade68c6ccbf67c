"""Who may use a web server, and who is who: for a server on loopback, and for one with a token on any address.

    access = Access(os.environ.get("WEB_TOKEN", ""))
    user = access.user(request)  # in each route
    workflow_id = access.name(user, chat_id)

A browser is known by a cookie that the page sets. Its value is random, so that nobody guesses it, and no script reads
it. With a token, a cookie is given only to those who know it: they open `/?token=…` once. A program sends the token as
`Authorization: Bearer …`.

On loopback any page of the web may send requests to the server, through the browser of whoever runs it. So a request
that names another origin, or another host (a name of the attacker's that leads to 127.0.0.1), is refused.
"""

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

COOKIE = "durable_agent_user"

COOKIE_SECONDS = 365 * 24 * 3600

BODY_LIMIT = 32 * 1024 * 1024
"""Bytes of a request. By default `useChat` sends the whole conversation with each message."""

TOKEN_LENGTH = 16
"""Characters that a token has at least."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """See above.

    Args:
        token: Without one, the server must listen on loopback only.
    """

    def __init__(self, token: str = "") -> None:
        self._token = token

    def user(self, request: Request) -> str:
        """Who sends a request. Everybody who sends the token is one user.

        Raises:
            HTTPException: 401 to those who are not known, 403 to other sites.
        """
        if self._token and _same(request.headers.get("authorization", ""), f"Bearer {self._token}"):
            return "bearer"
        self._check_site(request)
        user = self._known(request)
        if user is None:
            how = "open / with ?token=…, or send the token" if self._token else "open the page first"
            raise HTTPException(401, f"This is nobody's request: {how}.")
        return user

    def admit(self, request: Request) -> Response | None:
        """For the page: None to who may see it now, or a response that makes them known."""
        self._check_host(request)
        offered = request.query_params.get("token")
        if self._known(request) is not None and offered is None:
            return None
        if self._token and not _same(offered or "", self._token):
            raise HTTPException(401, "Open / with ?token=… and the server's WEB_TOKEN.")
        # To the same page without the token, which would stay in the browser's history.
        response = RedirectResponse("/", 303, headers={"Cache-Control": "no-store"})
        user = secrets.token_urlsafe(24)
        value = f"{user}.{self._signature(user)}"
        # A strict one would be kept back where a link of another site leads here, and replaced by another user's.
        response.set_cookie(COOKIE, value, max_age=COOKIE_SECONDS, httponly=True, samesite="lax")
        return response

    def name(self, user: str, id: str) -> str:
        """The name of what belongs to a user and has this id with them. Nobody else comes upon it."""
        return hmac.new(user.encode(), id.encode(), hashlib.sha256).hexdigest()[:40]

    def _known(self, request: Request) -> str | None:
        user, _, signature = request.cookies.get(COOKIE, "").rpartition(".")
        return user if user and _same(signature, self._signature(user)) else None

    def _signature(self, user: str) -> str:
        # On loopback it proves nothing, and need not: a cookie that somebody makes up is another user.
        return hmac.new(self._token.encode() or b"loopback", user.encode(), hashlib.sha256).hexdigest()

    def _check_host(self, request: Request) -> None:
        if not self._token and not is_loopback(request.url.hostname or ""):
            raise HTTPException(403, "This server answers to localhost and 127.0.0.1 only.")

    def _check_site(self, request: Request) -> None:
        self._check_host(request)
        origin = request.headers.get("origin")
        is_own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
        if not is_own or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise HTTPException(403, "Requests of other sites are refused.")


async def body_of(request: Request, limit: int = BODY_LIMIT) -> bytes:
    """The body of a request. HTTPException: it is too long."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise HTTPException(413, f"The request has over {limit:,} bytes.")
    return bytes(body)


def policy_of(page: str) -> str:
    """The `Content-Security-Policy` of a page that has all its code in itself: it runs this and no other, and talks to
    its own server only."""

    def allowed(kind: str) -> str:
        codes = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in codes]
        return " ".join(f"'sha256-{hash}'" for hash in hashes)

    own = f"style-src {allowed('style')}; script-src {allowed('script')}; connect-src 'self'; img-src data:"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
