"""Launches a web server that has a worker in its process, and the Temporal server and the demo of main.py."""

import argparse
import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import override

import pydantic
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from temporalio.client import Client, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from app import demo
from app.command_line import DEFAULT_MODEL, OFFLINE_TASK_QUEUE, TASK_QUEUE, Options
from app.endings import Ending
from app.environment import build_of_worker, check_environment
from app.output import UserError, one_line, say, say_error, set_up_logging
from app.server import temporal_server
from options.access import TOKEN_LENGTH, Access, is_loopback
from options.conversation_client import ConversationTooLong
from options.gateway import GatewayModel
from plugin import DurableAgents


def _problem(request: Request, error: Exception) -> Response:
    """What went wrong, in one line that people can use."""
    match error:
        case pydantic.ValidationError():
            status, text = 400, f"This is not what useChat sends: {one_line(error)}"
        case ConversationTooLong():
            status, text = 413, f"{one_line(error)}: begin another one."
        case RPCError(status=RPCStatusCode.NOT_FOUND):
            status, text = 404, "There is no such conversation."
        case RPCError():
            status, text = 503, f"The Temporal server, or a worker, does not answer: {one_line(error)}"
        case _:
            status, text = 503, "No worker takes this. It was not delivered; send it again."
    return PlainTextResponse(text, status)


PROBLEMS = dict.fromkeys(
    (pydantic.ValidationError, ConversationTooLong, RPCError, TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError),
    _problem,
)
"""For `Starlette(exception_handlers=…)`."""


@dataclass(frozen=True)
class Site:
    """What a web application is made with."""

    client: Client
    access: Access
    task_queue: str
    """That of the worker in this process."""
    model: str
    notice: str
    """For people to read: that this is the demo. Or empty."""


def launch(workflow: type, make_app: Callable[[Site], Starlette]) -> int:
    """Serve an application until Ctrl-C, as the command line and the environment say. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Converse with a durable agent in a browser.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; one that is not loopback needs WEB_TOKEN"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--no-worker", action="store_true", help="only serve; a worker, main.py --worker, runs elsewhere"
    )
    options, token = parser.parse_args(), os.environ.get("WEB_TOKEN", "")
    set_up_logging(debug=False)
    try:
        with ExitStack() as stack:
            if len(token) < TOKEN_LENGTH and (token or not is_loopback(options.host)):
                needs = f"{options.host} needs a token: " if not is_loopback(options.host) else ""
                raise UserError(f"{needs}set WEB_TOKEN to a random text of at least {TOKEN_LENGTH} characters")
            taken = listen(options.host, options.port)
            is_offline = not (options.no_worker or os.environ.get("AI_GATEWAY_API_KEY"))
            if is_offline:
                say(demo.NOTICE)
                os.environ.update(demo.environment(stack.enter_context(demo.serve())))
            if not options.no_worker:
                check_environment()
            running = _run(
                workflow,
                make_app,
                host=options.host,
                taken=taken,
                is_offline=is_offline,
                has_worker=not options.no_worker,
            )
            return asyncio.run(running)
    except Exception as error:
        say_error(error, debug=False)
        return 1


async def _run(
    workflow: type,
    make_app: Callable[[Site], Starlette],
    *,
    host: str,
    taken: socket.socket,
    is_offline: bool,
    has_worker: bool,
) -> int:
    token = os.environ.get("WEB_TOKEN", "")
    async with Ending(Options(worker=True)) as ending, temporal_server(DurableAgents(GatewayModel)) as server:
        site = Site(
            client=server.client,
            access=Access(token),
            task_queue=OFFLINE_TASK_QUEUE if is_offline else TASK_QUEUE,
            model="offline/demo" if is_offline else os.environ.get("AI_MODEL", "").strip() or DEFAULT_MODEL,
            notice=demo.NOTICE if is_offline else "",
        )
        worker = Worker(
            site.client,
            task_queue=site.task_queue,
            workflows=[workflow],
            deployment_config=build_of_worker(),
            on_fatal_error=ending.worker_failed,
        )
        async with worker if has_worker else nullcontext(), ending.work():
            where = f"http://{f'[{host}]' if ':' in host else host}:{taken.getsockname()[1]}/"
            say(f"Open {where}{'?token=… with your WEB_TOKEN' if token else ''} (Ctrl-C stops it)")
            await serve(make_app(site), taken)
    return ending.status


def listen(host: str, port: int) -> socket.socket:
    """Take a port, or any free one for 0. UserError: that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from error
    # By hand, since asyncio passes over a socket made without naming TCP: answers would come 40 ms late.
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return taken


class _Server(uvicorn.Server):
    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # they are app/endings.py's
        yield


async def serve(app: Starlette, taken: socket.socket) -> None:
    """Serve until this is cancelled. Open streams end with the process."""
    try:
        await _Server(uvicorn.Config(app, log_config=None, lifespan="off")).serve(sockets=[taken])
    finally:
        logging.getLogger("uvicorn.error").disabled = True  # it would tell of each stream that ends like this
