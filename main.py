"""The command line: find or start a Temporal server, run a worker, submit an `AgentWorkflow`, show its answer.

The answer is the only thing on standard output.
"""

import argparse
import asyncio
import importlib
import io
import logging
import os
import re
import select
import shlex
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from types import ModuleType
from typing import TextIO
from urllib.parse import quote

DEFAULT_QUERY = "How is the weather in New York and in Los Angeles, and how many people live in each?"
DEFAULT_MODEL = "anthropic/claude-sonnet-4.6"
TASK_QUEUE = "durable-agent"
OFFLINE_TASK_QUEUE = "durable-agent-offline"
"""Of its own, so that no demo worker ever answers for a real model, nor the other way round."""


class Options(argparse.Namespace):
    """What the command line and the environment ask for."""

    query: str | None
    id: str | None
    model: str
    offline: bool
    worker: bool
    no_worker: bool
    approve: bool
    yes: str | None
    no: str | None
    reason: str | None
    task_queue: str


def parse(arguments: list[str]) -> Options:
    """Read the command line. Exits with status 2 and one line on standard error if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="main.py", description="Ask a durable agent about the weather and population of cities."
    )
    parser.add_argument("query", nargs="?", metavar="QUERY", help="the question; - reads it from standard input")
    parser.add_argument("--id", help="name of the run; joins the run of that name if there is one")
    parser.add_argument("--model", help=f"model to ask (default: $AI_MODEL or {DEFAULT_MODEL})")
    parser.add_argument("--offline", action="store_true", help="use the demo model and sample data")
    parser.add_argument("--approve", action="store_true", help="ask for your approval before each tool call")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--worker", action="store_true", help="only serve, until interrupted")
    mode.add_argument("--no-worker", action="store_true", help="only submit and follow; a worker runs elsewhere")
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--yes", metavar="CALL", help="approve a tool call of the run --id")
    answer.add_argument("--no", metavar="CALL", help="refuse a tool call of the run --id")
    parser.add_argument("--reason", help="why not, for the model to read; with --no")
    options = parser.parse_args(arguments, namespace=Options())

    if options.worker and (options.query or options.id or options.model):
        parser.error("--worker only serves: it takes no query, --id or --model")
    if (options.yes or options.no) and (options.id is None or options.query is not None):
        parser.error("--yes and --no answer a question of a run: they take its --id and no query")
    if options.reason is not None and options.no is None:
        parser.error("--reason says why not: it belongs to --no")
    if options.approve and (options.worker or (options.id is not None and options.query is None)):
        parser.error("--approve is for starting a run: it takes a query")
    if options.query == "-":
        read = sys.stdin.buffer.read() if sys.stdin else b""  # none if it was closed by whoever started this
        options.query = read.decode(errors="surrogateescape").strip()
    for name in ("query", "id", "model", "yes", "no", "reason"):
        value, shown = getattr(options, name), "the query" if name == "query" else f"--{name}"
        if value is None:
            continue
        if not value.strip():
            parser.error(f"{shown} is empty")
        if any("\ud800" <= character <= "\udfff" for character in value):
            parser.error(f"{shown} is not valid UTF-8")
        if any(not character.isprintable() and character not in "\n\t" for character in value):
            parser.error(f"{shown} contains control characters")
    if options.id is not None and (size := len(options.id.encode())) > 1000:
        parser.error(f"--id has {size:,} bytes, over the limit of 1,000")  # the server's

    options.offline = options.offline or not (options.no_worker or os.environ.get("AI_GATEWAY_API_KEY"))
    options.task_queue = OFFLINE_TASK_QUEUE if options.offline else TASK_QUEUE
    default = "offline/demo" if options.offline else DEFAULT_MODEL
    options.model = options.model or os.environ.get("AI_MODEL", "").strip() or default
    return options


class LoadedWhenUsed(ModuleType):
    """Stands in `sys.modules` for a module that takes long to load, until something of it is used."""

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


if __name__ == "__main__":
    # Wrong usage is answered at once, not after the time in which the libraries below are loaded.
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to put in order yet, so no traceback either
    COMMAND_LINE = parse(sys.argv[1:])
    # The SDK loads the libraries of all its providers, which takes two seconds. This agent asks the gateway.
    for unused in ("vercel_ai_sdk.anthropic", "vercel_ai_sdk.openai"):
        sys.modules[unused] = LoadedWhenUsed(unused)

from pydantic_core import to_json
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import SegmentLines
from rich.text import Text
from temporalio import common, exceptions, runtime
from temporalio.api.common.v1 import Payload
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.client import WorkflowUpdateFailedError as UpdateFailed
from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError as UpdateLost
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker, WorkerDeploymentConfig
from vercel_ai_sdk import Usage

import activities
from durable import HEARTBEAT_THROTTLE, WORKFLOW_RUNNER
from workflow import AgentAnswer, AgentRequest, AgentWorkflow

type Handle = WorkflowHandle[AgentWorkflow, AgentAnswer]

CONNECT_SECONDS = 10
"""For connecting and one call: the client library tries for five or so before it tells of a broken connection."""

LOST_SECONDS = 60
"""How long to wait for a server that was lost, before giving up following a run: longer than a restart takes."""

COMMAND = "uv run python main.py"

# What a person can do about it, by the type or the status of the failure that ended the run.
ADVICE = {
    "HTTP 400": "The model or the gateway does not take such a request; another --model may.",
    "HTTP 401": "Set AI_GATEWAY_API_KEY to a valid key and start a new run.",
    "HTTP 402": "Add credit for AI_GATEWAY_API_KEY and start a new run.",
    "HTTP 403": "See what AI_GATEWAY_API_KEY is allowed to do, or name another --model.",
    "HTTP 404": "Name another model with --model or AI_MODEL.",
    "ModelCallLimit": "The history shows what it kept asking for.",
    "PayloadTooLarge": "Ask for less at once.",
}

# What is wrong between a client and a server, by a word in what the client library says of it.
CONNECT_ADVICE = {
    "Unauthenticated": "set TEMPORAL_API_KEY to a valid key",
    "PermissionDenied": "see what TEMPORAL_API_KEY is allowed to do",
    "UnknownIssuer": "its certificate is of an unknown authority; set TEMPORAL_TLS_SERVER_CA_CERT_PATH",
    "NotValidForName": "its certificate is for another host; set TEMPORAL_TLS_SERVER_NAME",
    "InvalidContentType": "it does not speak TLS; set TEMPORAL_TLS=false",
    "hyper::Error": "it breaks the connection off; it may want TLS (TEMPORAL_TLS=true) or a client certificate "
    "(TEMPORAL_TLS_CLIENT_CERT_PATH, TEMPORAL_TLS_CLIENT_KEY_PATH)",
}

CUT_SHORT = {"length": "the model's length limit", "content-filter": "a content filter"}


class UserError(Exception):
    """Something the user can put right. The message is one line: what happened, and what to do."""


def say(text: str) -> None:
    """Write a line to standard error. Where that is closed, full or a broken pipe the answer is still wanted."""
    if sys.stderr is not None:  # print() would take standard output for it
        with suppress(OSError):
            print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text without control codes: what a model or a service says must not drive the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def one_line(error: BaseException) -> str:
    text = error.message if isinstance(error, exceptions.FailureError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def tokens(usage: Usage) -> str:
    return f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"


def title(text: str, length: int = 80) -> str:
    """The text in one short line; the server takes a summary of up to 400 bytes."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


# ── Server and worker ────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def temporal() -> AsyncIterator[tuple[Client, bool]]:
    """Connect to the Temporal server that the environment names, or else have a dev server while the body runs.

    Yields:
        The client, and whether its server may be gone when the body ends.

    Raises:
        UserError: The configuration cannot be read, or the server cannot be started or used.
    """
    try:
        config = ClientConfig.load_client_connect_config()
    except Exception as error:  # the bridge's ConfigError is not a public name
        # What it quotes of the file may be a key.
        problem = re.sub(r" \| \d+ \| .* \| \^+ ", ": ", one_line(error))
        raise UserError(f"the Temporal configuration cannot be read: {problem}") from error
    if "target_host" in config:
        yield await connect(config), False
        return
    if config.get("tls"):
        raise UserError("an API key or TLS is configured for Temporal, but no address: set TEMPORAL_ADDRESS")
    import offline

    config["target_host"] = f"localhost:{offline.PORT}"
    try:
        async with offline.dev_server(config.get("namespace", "default"), partial(connect, config)) as client:
            yield client, True
    except offline.CannotServe as error:
        raise UserError(one_line(error)) from error


async def connect(config: ClientConnectConfig) -> Client:
    """Connect to a Temporal server. UserError: nothing is there, or no Temporal server, or it refuses this client."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            client = await Client.connect(**config, data_converter=pydantic_data_converter)
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


def make_worker(client: Client, task_queue: str = TASK_QUEUE, calls: bool = True) -> Worker:
    """A worker for the agent's workflow.

    Args:
        client: Connected with the data converter of whoever starts the runs.
        task_queue: Where its work comes from; by default that of real models.
        calls: Whether it makes the model and tool calls too, or only drives workflows.
    """
    build_id = os.environ.get("TEMPORAL_WORKER_BUILD_ID")
    # Without a build id the worker makes one of the code of every module there is, which takes a second.
    version = common.WorkerDeploymentVersion("durable-agent", build_id or "1")
    # With one of your own, a run stays with the build that it began with.
    behavior = common.VersioningBehavior.PINNED if build_id else common.VersioningBehavior.UNSPECIFIED
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[AgentWorkflow],
        activities=[activities.ModelActivities().llm_stream_activity, activities.tool_call_activity] if calls else [],
        workflow_runner=WORKFLOW_RUNNER,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        # How long a run waits for a worker that has it in its cache but died, before any other may take it.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=5),
        deployment_config=WorkerDeploymentConfig(version, bool(build_id), behavior),
    )


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────────


async def run(options: Options) -> int:
    """Do what the command line says, and return the exit status. UserError: it cannot be done."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupted, ending = False, 0.0  # since when, by the monotonic clock

    def interrupt(*_: object) -> None:
        nonlocal interrupted, ending
        if not ending:
            interrupted, ending = True, time.monotonic()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(task.cancel)
        elif time.monotonic() - ending > 1:  # a signal may come twice, to the process and to its group
            os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)

    try:
        async with temporal() as (client, may_stop):
            call = options.yes or options.no  # who answers ends at once, and would take a call that it began with it
            async with nullcontext() if options.no_worker else make_worker(client, options.task_queue, not call):
                try:
                    if options.worker:
                        say(f"Worker on {client.service_client.config.target_host} is ready. Ctrl-C stops it.")
                        await asyncio.Event().wait()
                    elif call:
                        await answer_question(client, options)
                    else:
                        await submit(client, options)
                        if may_stop:
                            say(f"To look back: {COMMAND} --worker, and open the page above. Ctrl-C stops it.")
                finally:
                    ending = ending or time.monotonic()  # a worker that is cancelled while it shuts down may never end
        return 0
    except RPCError as error:
        raise UserError(f"the Temporal server refused: {one_line(error)}") from error
    except RuntimeError as error:
        raise UserError(f"the worker stopped: {one_line(error)}") from error
    except asyncio.CancelledError:
        if not interrupted:
            raise UserError("the worker stopped") from None
        return 0 if options.worker else 130


async def submit(client: Client, options: Options) -> None:
    """Start or join the run, follow it, and print its answer. UserError: there is no such run, or it has no answer."""
    handle, state = await start_or_join(client, options)
    say(f"Run {handle.id}{state}")
    if page := link(client, handle.id):
        say(f"    {page}")
    if options.no_worker:
        queue = DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=options.task_queue))
        if not (await client.workflow_service.describe_task_queue(queue)).pollers:  # in the last minutes
            say(f"No worker serves the task queue {options.task_queue}; waiting for one.")
    try:
        summary = await Progress(client, handle).follow()
        answer = await patiently(handle.result)
    except WorkflowFailureError as error:
        raise UserError(why_failed(error)) from error
    except asyncio.CancelledError:
        say(f"Interrupted. The run itself goes on; follow it with: {COMMAND} --id {shlex.quote(handle.id)}")
        raise
    except (UserError, RPCError):
        raise
    except Exception as error:  # whatever a data converter raises
        problem = f"the run cannot be read here ({one_line(error)}): is it encrypted, or stored elsewhere?"
        raise UserError(problem) from error
    if cut := CUT_SHORT.get(answer.finish_reason or ""):
        say(f"The answer was cut short by {cut}.")
    print_answer(answer.text)
    say(summary)


def link(client: Client, run_id: str) -> str | None:
    """The page of a run in the Web UI, where it can be known: a dev server's and Temporal Cloud's."""
    config = client.service_client.config
    host, _, port = config.target_host.rpartition(":")
    path = f"namespaces/{quote(client.namespace, safe='')}/workflows/{quote(run_id, safe='')}"
    if host in ("localhost", "127.0.0.1", "[::1]") and not config.tls:
        return f"http://localhost:{int(port) + 1000}/{path}"  # where the dev server has it
    return f"https://cloud.temporal.io/{path}" if host.endswith((".tmprl.cloud", ".temporal.io")) else None


async def start_or_join(client: Client, options: Options) -> tuple[Handle, str]:
    """Start the run, or join the one that has its name; then the second value tells the state in which it was found.

    Raises:
        UserError: It cannot be joined, or the query is too large.
    """
    run_id = options.id or f"agent-{uuid.uuid4().hex[:12]}"
    request = AgentRequest(query=options.query or DEFAULT_QUERY, model=options.model, approve=options.approve)
    size, limit = len(request.model_dump_json().encode()), activities.PAYLOAD_LIMIT // 2
    if size > limit:  # the rest of the payload is for what a run carries over when it continues as new
        raise UserError(f"the query has {size:,} bytes, over the limit of {limit:,}: shorten it")
    if options.id is None or options.query is not None:
        with suppress(exceptions.WorkflowAlreadyStartedError):
            started = await client.start_workflow(
                AgentWorkflow.run,
                request,
                id=run_id,
                task_queue=options.task_queue,
                id_reuse_policy=common.WorkflowIDReusePolicy.REJECT_DUPLICATE,
                request_eager_start=not options.no_worker,
                static_summary=title(request.query),
            )
            return started, ""
    handle, running = await find(client, run_id, options.task_queue)
    state = " is under way" if running else " is over"
    return handle, state + ("; it keeps the query that it was started with" if options.query else "")


async def find(client: Client, run_id: str, task_queue: str) -> tuple[Handle, bool]:
    """Look a run up, and whether it is under way. UserError: there is none, or it is not ours to work on."""
    handle = client.get_workflow_handle_for(AgentWorkflow.run, run_id)
    try:
        description = await handle.describe()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        raise UserError(f"there is no run called {run_id!r}; add a query to start one") from error
    if description.workflow_type != "AgentWorkflow":
        raise UserError(f"{run_id!r} is the id of a {description.workflow_type}, not of an agent: choose another")
    running = description.status == WorkflowExecutionStatus.RUNNING
    if running and description.task_queue != task_queue:
        started = "offline" if description.task_queue == OFFLINE_TASK_QUEUE else "with an API key"
        raise UserError(f"run {run_id!r} was started {started}: join it the same way")
    return handle, running


async def answer_question(client: Client, options: Options) -> None:
    """Approve or refuse a tool call that waits for it. UserError: there is no such run, or no such call waits in it."""
    handle, _ = await find(client, options.id or "", options.task_queue)
    approved, call = options.yes is not None, options.yes or options.no or ""
    answer = activities.Approval(call=call, approved=approved, reason=options.reason or "")
    question = await send(handle, answer)
    say(f"{'Approved' if approved else 'Refused'}: {question}")
    say(f"Follow the run with: {COMMAND} --id {shlex.quote(handle.id)}")


async def send(handle: Handle, answer: activities.Approval) -> str:
    """Answer a question of a run, and return it. UserError: it is not open, or the server is gone for good."""
    update_id = uuid.uuid4().hex  # one for all attempts, or the second would be told that the first has answered

    async def update() -> str:
        try:
            question: str = await handle.execute_update(activities.APPROVAL, answer, id=update_id, result_type=str)
            return question
        except UpdateLost as error:  # hides what it was: a Ctrl-C, or a lost server
            raise error.__cause__ or error from None

    try:
        return await patiently(update)
    except UpdateFailed as error:
        raise UserError(one_line(error.cause)) from error
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        raise UserError(f"run {handle.id!r} is over: nothing waits for an approval in it") from error
    except KeyError as error:  # what the converter raises for an encoding that it does not know
        raise UserError(f"answered, but the run cannot be read here ({one_line(error)}): is it encrypted?") from error


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
            return await call()
        except RPCError as error:
            if error.status not in (RPCStatusCode.UNAVAILABLE, RPCStatusCode.CANCELLED, RPCStatusCode.UNKNOWN):
                raise
            # A call that held for longer than the client's own retries had a server meanwhile.
            if lost is None or time.monotonic() - since > 15:
                lost = time.monotonic()
                say("Lost the Temporal server; waiting for it to come back.")
            if time.monotonic() - lost > LOST_SECONDS:
                advice = f"when it is back, rejoin the run with: {COMMAND} --id ID"
                raise UserError(f"the Temporal server does not come back ({one_line(error)}); {advice}") from error
            await asyncio.sleep(1)


def why_failed(error: BaseException) -> str:
    """The failure that ended a run in one line, and what to do about it."""
    while error.__cause__ is not None and not isinstance(error, exceptions.ApplicationError):
        error = error.__cause__
    match error:
        case exceptions.CancelledError():
            return "the run was cancelled"
        case exceptions.TerminatedError():
            return f"the run was terminated: {one_line(error)}"
        case exceptions.ApplicationError(message=message, type=kind):
            advice = ADVICE.get(message[:8]) or ADVICE.get(kind or "", "")
            return f"the run failed: {one_line(error).rstrip('.')}. {advice}".rstrip()
    return f"the run failed: {one_line(error)}"


# ── What a person sees ───────────────────────────────────────────────────────────────────────────────────

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MARKS = {"<": ("✓", "green"), "x": ("✗", "red"), "!": ("!", "yellow"), "?": ("?", "cyan")}
"""Of the lines in a terminal, by the ones that plain lines have."""

ENDINGS = {
    "activity_task_completed_event_attributes": ("<", "done in"),
    "activity_task_failed_event_attributes": ("x", "FAILED after"),
    "activity_task_timed_out_event_attributes": ("x", "TIMED OUT after"),
    "activity_task_canceled_event_attributes": ("x", "cancelled after"),
}
"""How a call ended: the mark of its line, and what that says."""


def in_color(stream: TextIO | None) -> bool:
    """Whether control codes are welcome there."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return not plain and stream is not None and stream.isatty()


def markdown(text: str, style: str = "none") -> Markdown:
    """What models write, for a terminal. They mean the ends of their lines, which in Markdown are just spaces."""
    return Markdown(re.sub(r"(?<=\S)\n(?=\S)", "  \n", printable(text)), style=style)


def print_answer(text: str) -> None:
    """Write the answer to standard output. UserError: it cannot be written there."""
    try:
        if sys.stdout is None:  # closed by whoever started this
            raise OSError("there is no standard output")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that has no "°" is no reason to lose the answer
        if in_color(sys.stdout):
            Console().print("", markdown(text), "", sep="\n")
        else:
            print(printable(text) if sys.stdout.isatty() else text, flush=True)
    except BrokenPipeError:
        pass  # whoever read it has read enough
    except OSError as error:
        raise UserError(f"the answer cannot be written: {one_line(error)}") from error


@dataclass
class Step:
    """A model or tool call that is under way."""

    activity_id: str
    summary: str
    of_model: bool
    since: datetime
    attempt: int = 1
    said: tuple[tuple[str, str], ...] = ()
    """What the model has said so far, with the style of each text."""


class Screen:
    """Standard error: plain lines, or, in a terminal, lines with what is under way below them."""

    def __init__(self) -> None:
        plain = not in_color(sys.stderr)
        self.console = Console(stderr=True, force_terminal=not plain, quiet=plain)
        self.live = Live(self, console=self.console, auto_refresh=False)
        self.can_ask = sys.platform != "win32" and all(s is not None and s.isatty() for s in (sys.stdin, sys.stderr))
        self.steps: dict[int, Step] = {}  # under way, by the event that began them

    def say(self, mark: str, text: str) -> None:
        if self.console.quiet:
            say(f"  {mark} {text}")
        elif mark != ">":  # what is under way stands below
            sign, style = MARKS[mark]
            line = Text.assemble((f"  {sign} ", style), printable(text))
            if mark == "<":  # how it ended is what counts; what is wrong, or is asked, stands there whole
                line.truncate(self.console.width, overflow="ellipsis")
            self.console.print(line, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.live.is_started:  # nothing of it stays there
            return
        width, height = options.size
        spinner = SPINNER[int(time.monotonic() * 10) % len(SPINNER)]
        steps = list(self.steps.values())[: max(1, height - 3)]
        for step in steps:
            seconds = f" {(datetime.now(UTC) - step.since).total_seconds():.0f} s"
            row = Text(f"  {spinner} {printable(step.summary)}")
            row.truncate(max(1, width - len(seconds)), overflow="ellipsis")
            yield row.append(seconds)
        # What was written last is what counts, and rendering all of a long text takes too long to be live.
        texts = [markdown(text[-2 * height * width :], style) for step in steps for text, style in step.said]
        lines = console.render_lines(Group(*texts), options, pad=False)
        yield SegmentLines(lines[-max(1, height - len(steps) - 2) :], new_lines=True)


class Progress:
    """Follows a run and shows what it does: each call as it starts and ends, failed attempts, the text as it comes."""

    def __init__(self, client: Client, handle: Handle) -> None:
        self._client = client
        self._handle = handle
        self._screen = Screen()
        self._began = self._ended = datetime.now(UTC)
        self._calls = {"model": 0, "tool": 0}
        self._usage = Usage()

    async def follow(self) -> str:
        """Show every step until the run is over, and return a summary. Raises what the data converter does, too."""
        with self._screen.live:
            pending = asyncio.create_task(self._follow_pending())
            try:
                await self._follow_history()
            finally:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)  # what is wrong there is wrong here too
        seconds = (self._ended - self._began).total_seconds()
        calls = ", ".join(f"{number:,} {kind} call{'s' * (number != 1)}" for kind, number in self._calls.items())
        return f"{calls}, {tokens(self._usage)}, {seconds:.1f} s"

    async def _follow_history(self) -> None:
        run_id: str | None = None  # the latest
        while run_id != "":  # a run that continues as new has a history of its own for each part
            self._screen.steps.clear()
            handle = self._client.get_workflow_handle(self._handle.id, run_id=run_id)
            # A long poll: the server answers when there is something new.
            events = handle.fetch_history_events(wait_new_event=True)
            while event := await patiently(partial(anext, events, None)):
                await self._show_event(event)
                run_id = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id

    async def _show_event(self, event: HistoryEvent) -> None:
        now = self._ended = event.event_time.ToDatetime(UTC)
        match kind := event.WhichOneof("attributes"):
            case "workflow_execution_started_event_attributes":
                started = event.workflow_execution_started_event_attributes
                self._began = min(self._began, now)
                if carried := (await self._decode(started.input.payloads[0], AgentRequest)).carried:
                    self._calls = {"model": carried.calls, "tool": len(carried.checkpoint.tools)}
                    self._usage = carried.usage or Usage()
            case "activity_task_scheduled_event_attributes":
                scheduled = event.activity_task_scheduled_event_attributes
                summary = await self._decode(event.user_metadata.summary, str)
                of_model = scheduled.activity_type.name == "llm_stream_activity"
                self._screen.steps[event.event_id] = Step(scheduled.activity_id, summary, of_model, since=now)
                self._screen.say(">", summary)
            case "activity_task_started_event_attributes":
                began = event.activity_task_started_event_attributes
                self._screen.steps[began.scheduled_event_id].attempt = began.attempt
            case kind if kind in ENDINGS:
                step = self._screen.steps.pop(getattr(event, kind).scheduled_event_id)
                self._calls["model" if step.of_model else "tool"] += 1
                attempts = f", attempt {step.attempt}" if step.attempt > 1 else ""
                mark, ended = ENDINGS[kind]
                seconds, result = (now - step.since).total_seconds(), await self._result(event, step)
                self._screen.say(mark, f"{step.summary} {ended} {seconds:.1f} s{attempts}{result}")
            case "workflow_properties_modified_event_attributes":
                changed = event.workflow_properties_modified_event_attributes.upserted_memo.fields
                for call in activities.open_questions(changed):
                    # The history tells of every question that came or went; the description knows which are open.
                    if question := (await self._open_questions()).get(call):
                        await self._ask(call, question)

    async def _result(self, event: HistoryEvent, step: Step) -> str:
        """What came of a call, in short."""
        if event.HasField("activity_task_failed_event_attributes"):
            failure = event.activity_task_failed_event_attributes.failure
            return f": {one_line(await self._client.data_converter.decode_failure(failure))}"
        if not event.HasField("activity_task_completed_event_attributes"):
            return ""
        payload = event.activity_task_completed_event_attributes.result.payloads[0]
        if not step.of_model:
            return f": {title(to_json((await self._decode(payload, activities.ToolReply)).result).decode(), 120)}"
        usage = (await self._decode(payload, activities.ModelReply)).message.usage
        self._usage += usage or Usage()
        return f": {tokens(usage)}" if usage else ""

    async def _decode[T](self, payload: Payload, type: type[T]) -> T:
        value: T = (await self._client.data_converter.decode([payload], [type]))[0]
        return value

    async def _follow_pending(self) -> None:
        # Attempts, and the text of an answer that is not whole yet, are not in the history, only in the description.
        for tick in count():
            await asyncio.sleep(0.08)
            is_live = not self._screen.console.quiet and any(step.of_model for step in self._screen.steps.values())
            if self._screen.steps and (is_live or tick % 5 == 0):  # there is less to tell of the rest
                with suppress(RPCError):  # the server is lost, and who follows the history says so
                    await self._show_pending()
            if self._screen.live.is_started:
                self._screen.live.refresh()

    async def _show_pending(self) -> None:
        description = await self._handle.describe()
        steps = {step.activity_id: step for step in self._screen.steps.values()}
        for pending in description.raw_description.pending_activities:
            if not (step := steps.get(pending.activity_id)):
                continue
            said: tuple[tuple[str, str], ...] = ()
            if step.of_model and pending.heartbeat_details.payloads:
                live = await self._decode(pending.heartbeat_details.payloads[0], activities.LiveText)
                if live.attempt == pending.attempt:  # or it is the text of one that failed
                    said = (live.reasoning, "dim italic"), ("…" * bool(live.start) + live.text, "none")
            step.said = said
            if pending.attempt > step.attempt and self._screen.live.is_started:
                step.attempt = pending.attempt
                wait = (pending.next_attempt_schedule_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()
                when = f"in {wait:.0f} s" if wait > 0.5 else "now"  # it is in the past if there is none
                failure = one_line(await self._client.data_converter.decode_failure(pending.last_failure))
                self._screen.say("!", f"{step.summary}: attempt {step.attempt - 1} failed: {failure}; next one {when}")

    async def _open_questions(self) -> dict[str, str]:
        description = await patiently(self._handle.describe)
        is_running = description.status == WorkflowExecutionStatus.RUNNING
        return activities.open_questions(await description.memo()) if is_running else {}

    async def _ask(self, call: str, question: str) -> None:
        """Ask the person at the terminal, or say with which commands to answer."""
        self._screen.say("?", f"{question} waits for an approval")
        if not self._screen.can_ask:
            command = f"{COMMAND} --id {shlex.quote(self._handle.id)}"
            say(f"        {command} --yes {call}")
            say(f'        {command} --no {call} --reason "…"')
            return
        self._screen.live.stop()  # the terminal is left to the person who types
        answer = await self._prompt(call)
        self._screen.live.start()
        if answer:
            with suppress(UserError):  # somebody else was faster
                await send(self._handle, answer)
                if not answer.approved:
                    self._screen.say("x", f"{question} refused{answer.reason and f': {answer.reason}'}")

    async def _prompt(self, call: str) -> activities.Approval | None:
        """Have a person answer; None if that was done elsewhere meanwhile."""
        import termios  # there is none on Windows

        while True:
            termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before the question does not answer it
            print("    Allow it? (y, or n and why) ", end="", file=sys.stderr, flush=True)
            while not (await asyncio.to_thread(select.select, [sys.stdin], [], [], 0.5))[0]:
                if call not in await self._open_questions():
                    say("It was answered elsewhere.")
                    return None
            # Not sys.stdin.readline(): after half a line and Ctrl-D it would block the loop, and it raises where the
            # line is not UTF-8.
            line = os.read(sys.stdin.fileno(), 4096).decode(errors="replace")
            if not line.endswith("\n"):  # Ctrl-D
                say("")
            word, _, reason = line.strip().partition(" ")
            if word.lower() in ("y", "yes", "n", "no"):
                return activities.Approval(call=call, approved=word.lower().startswith("y"), reason=reason)


class OneLine(logging.Handler):
    """Says what is logged, without tracebacks: what a user can do something about is said in words elsewhere."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        say(f"{record.name}: {record.getMessage()}{f': {one_line(error)}' if error else ''}")


def main(options: Options) -> int:
    """Do what the command line says, with the services of the demo if it is offline. Returns the exit status."""
    logging.basicConfig(level=logging.ERROR, handlers=[OneLine()])
    # The runtime logs to standard output by default.
    log = runtime.LoggingConfig("ERROR", forwarding=runtime.LogForwardingConfig(logging.getLogger("temporal")))
    runtime.Runtime.set_default(runtime.Runtime(telemetry=runtime.TelemetryConfig(logging=log)))
    try:
        with ExitStack() as stack:
            if options.offline and not options.no_worker:
                import offline

                say(offline.NOTICE)
                os.environ.update(offline.environment(stack.enter_context(offline.serve())))
            return asyncio.run(run(options))
    except UserError as error:
        say(f"Error: {error}")
        return 1


if __name__ == "__main__":
    # Not sys.exit(): when the interpreter takes itself down, threads of the Temporal runtime may still be running in
    # it, and every few exits one of them crashes the process. All output is flushed where it is written.
    os._exit(main(COMMAND_LINE))
