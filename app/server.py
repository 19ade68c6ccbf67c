"""Finds the Temporal server that the environment names, or has a dev server, and explains why it cannot be used."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, Plugin
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.service import RPCError, RPCStatusCode

from app import devserver
from app.output import COMMAND, UserError, one_line, say

CONNECT_SECONDS = 10
"""For connecting and one call: the client library tries for five or so before it tells of a broken connection."""

LOST_SECONDS = 60
"""How long to wait for a server that was lost, before giving up following a run: longer than a restart takes."""

# The remedy for a broken connection, by a word in the client library's message.
CONNECT_ADVICE = {
    "Unauthenticated": "set TEMPORAL_API_KEY to a valid key",
    "PermissionDenied": "see what TEMPORAL_API_KEY is allowed to do",
    "UnknownIssuer": "its certificate is of an unknown authority; set TEMPORAL_TLS_SERVER_CA_CERT_PATH",
    "NotValidForName": "its certificate is for another host; set TEMPORAL_TLS_SERVER_NAME",
    "InvalidContentType": "it does not speak TLS; set TEMPORAL_TLS=false",
    "hyper::Error": "it breaks the connection off; it may want TLS (TEMPORAL_TLS=true) or a client certificate "
    "(TEMPORAL_TLS_CLIENT_CERT_PATH, TEMPORAL_TLS_CLIENT_KEY_PATH)",
}


@dataclass(frozen=True)
class Server:
    """A Temporal server in use. `is_ours`: it is the dev server of this folder, and may be gone after this process."""

    client: Client
    is_ours: bool

    def page(self, workflow_id: str) -> str | None:
        """The page of a run in the Web UI, where it is known: our dev server's and Temporal Cloud's."""
        path = f"namespaces/{quote(self.client.namespace, safe='')}/workflows/{quote(workflow_id, safe='')}"
        if self.is_ours:
            return f"http://localhost:{devserver.UI_PORT}/{path}"
        host = self.client.service_client.config.target_host.rpartition(":")[0]
        return f"https://cloud.temporal.io/{path}" if host.endswith((".tmprl.cloud", ".temporal.io")) else None


@asynccontextmanager
async def temporal_server(*plugins: Plugin) -> AsyncIterator[Server]:
    """Connect to the Temporal server that the environment names, or else have a dev server while the body runs.

    Args:
        plugins: For the client, and so for its workers.

    Raises:
        UserError: The configuration cannot be read, or the server cannot be started or used.
    """
    try:
        config = ClientConfig.load_client_connect_config()
    except Exception as error:  # the bridge's ConfigError is not a public name
        # What it quotes of the file may be a key.
        problem = re.sub(r" \| \d+ \| .* \| \^+ ", ": ", one_line(error))
        raise UserError(f"the Temporal configuration cannot be read: {problem}") from error
    if address := config.get("target_host"):
        if not re.fullmatch(r"([^\s/:\[\]]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", address):
            raise UserError(
                f"TEMPORAL_ADDRESS, or the profile, has to name HOST:PORT (localhost:7233), not {address!r}"
            )
        yield Server(await connect(config, plugins), is_ours=False)
        return
    if config.get("tls"):
        raise UserError("an API key or TLS is configured for Temporal, but no address: set TEMPORAL_ADDRESS")
    config["target_host"] = f"localhost:{devserver.PORT}"
    namespace = config.get("namespace", "default")
    try:
        async with devserver.dev_server(namespace, partial(connect, config, plugins)) as (client, is_ours):
            yield Server(client, is_ours)
    except devserver.CannotServe as error:
        raise UserError(one_line(error)) from error


async def connect(config: ClientConnectConfig, plugins: Sequence[Plugin]) -> Client:
    """Connect to a Temporal server. UserError: nothing is there, or no Temporal server, or it refuses this client."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            client = await Client.connect(**config, plugins=plugins)
            await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
            return client
    except TimeoutError as error:
        advice = "is it a Temporal server? Free the port, or name a server in TEMPORAL_ADDRESS"
        raise UserError(f"{config['target_host']} does not answer: {advice}") from error
    except (RuntimeError, ValueError, RPCError) as error:
        # Without the debugging output that the client library makes of it.
        text = one_line(error)
        known = [advice for word, advice in CONNECT_ADVICE.items() if word in text][:1]
        said = [] if known and "transport" in text else re.findall(r'message: "(.*?)"', text)[:1]
        problem = "; ".join(said + known) or text
        raise UserError(f"cannot use the Temporal server at {config['target_host']}: {problem}") from error


_is_lost = False
"""Whether people were told that the server is lost. Several calls may wait for it."""


async def patiently[T](call: Callable[[], Awaitable[T]]) -> T:
    """Await a call to the server, again and again while the server cannot be reached.

    Args:
        call: Made anew each time, so it has to be safe to repeat.

    Raises:
        UserError: The server was gone for longer than `LOST_SECONDS`.
        RPCError: The server answered, and refused.
    """
    lost: float | None = None
    while True:
        since = time.monotonic()
        try:
            result = await call()
        except RPCError as error:
            if error.status not in (RPCStatusCode.UNAVAILABLE, RPCStatusCode.CANCELLED, RPCStatusCode.UNKNOWN):
                raise
            # A call that held for longer than the client's own retries had a server meanwhile.
            if lost is None or time.monotonic() - since > 15:
                lost = time.monotonic()
                _tell(is_lost=True)
            if time.monotonic() - lost > LOST_SECONDS:
                advice = f"when it is back, rejoin the run with: {COMMAND} --id ID"
                raise UserError(f"the Temporal server does not come back ({one_line(error)}); {advice}") from error
            await asyncio.sleep(1)
        else:
            if lost is not None:
                _tell(is_lost=False)
            return result


def _tell(*, is_lost: bool) -> None:
    global _is_lost  # noqa: PLW0603  # of the process, as what it says is
    if is_lost != _is_lost:
        _is_lost = is_lost
        say("Lost the Temporal server; waiting for it to come back." if is_lost else "The Temporal server is back.")
