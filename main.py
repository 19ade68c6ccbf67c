"""The command line: find or start a Temporal server, run a worker, submit an `AgentWorkflow`, show its answer.

The answer is the only thing on standard output. The libraries are imported inside the functions that use them:
together they take seconds, and wrong usage should be answered at once.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import os
import re
import shlex
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, cast
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rich.console import RenderableType
    from rich.markdown import Markdown
    from temporalio.api.common.v1 import Payloads
    from temporalio.api.failure.v1 import Failure
    from temporalio.api.history.v1 import HistoryEvent
    from temporalio.api.workflow.v1 import PendingActivityInfo
    from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle
    from temporalio.envconfig import ClientConnectConfig
    from temporalio.worker import Worker
    from vercel_ai_sdk import Usage

    from offline import DevServer
    from workflow import AgentAnswer, AgentWorkflow

    type Handle = WorkflowHandle[AgentWorkflow, AgentAnswer]

DEFAULT_QUERY = "How is the weather in New York and in Los Angeles, and how many people live in each?"
DEFAULT_MODEL = "anthropic/claude-sonnet-4.6"
TASK_QUEUE = "durable-agent"
OFFLINE_TASK_QUEUE = "durable-agent-offline"
"""Of its own, so that no demo worker ever answers for a real model, nor the other way round."""

BUILD_ID = "1"
MAX_ID_BYTES = 1000  # the server's limit for a workflow id

START_SECONDS = 30
LOST_SECONDS = 60
"""How long to wait for a server that was lost, before giving up following a run."""

REJOIN = "uv run python main.py --id"
WORKER = "uv run python main.py --worker"

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


class OneLine(logging.Formatter):
    """Log lines without tracebacks: what a user can do something about is said in words elsewhere."""

    def format(self, record: logging.LogRecord) -> str:
        line, error = super().format(record), record.exc_info[1] if record.exc_info else None
        return f"{line.rstrip()}: {one_line(error)}" if error else line

    def formatException(self, ei: object) -> str:
        return ""


def say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text without control codes: what a model or a service says must not drive the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


# ── Usage ────────────────────────────────────────────────────────────────────────────────────────────────


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
    reason: str
    task_queue: str

    @property
    def answers(self) -> bool:
        """Whether this only answers a question of a run."""
        return self.yes is not None or self.no is not None


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
    parser.add_argument("--reason", default="", help="why not, for the model to read; with --no")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--worker", action="store_true", help="only serve, until interrupted")
    mode.add_argument("--no-worker", action="store_true", help="only submit and follow; a worker runs elsewhere")
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--yes", metavar="CALL", help="approve a tool call of the run --id")
    answer.add_argument("--no", metavar="CALL", help="refuse a tool call of the run --id")
    options = parser.parse_args(arguments, namespace=Options())

    if options.worker and (options.query is not None or options.id is not None or options.model is not None):
        parser.error("--worker only serves: it takes no query, --id or --model")
    if options.answers and (options.id is None or options.query is not None):
        parser.error("--yes and --no answer a question of a run: they take its --id and no query")
    if options.reason and options.no is None:
        parser.error("--reason says why not: it belongs to --no")
    if options.approve and (options.worker or (options.id is not None and options.query is None)):
        parser.error("--approve is for starting a run: it takes a query")
    if options.query == "-":
        options.query = sys.stdin.buffer.read().decode(errors="surrogateescape").strip()
    checked = {"the query": options.query, "--id": options.id, "--model": options.model}
    checked |= {"--yes": options.yes, "--no": options.no, "--reason": options.reason or None}
    for name, value in checked.items():
        if value is None:
            continue
        if not value.strip():
            parser.error(f"{name} is empty")
        if any("\ud800" <= character <= "\udfff" for character in value):
            parser.error(f"{name} is not valid UTF-8")
        if any(not character.isprintable() and character not in "\n\t" for character in value):
            parser.error(f"{name} contains control characters")
    if options.id is not None and len(options.id.encode()) > MAX_ID_BYTES:
        parser.error(f"--id has {len(options.id.encode()):,} bytes, over the limit of {MAX_ID_BYTES:,}")
    options.offline = options.offline or not (options.no_worker or os.environ.get("AI_GATEWAY_API_KEY"))
    options.task_queue = OFFLINE_TASK_QUEUE if options.offline else TASK_QUEUE
    default = "offline/demo" if options.offline else DEFAULT_MODEL
    options.model = options.model or os.environ.get("AI_MODEL") or default
    return options


# ── The Temporal server ──────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def temporal_server() -> AsyncIterator[tuple[ClientConnectConfig, DevServer | None]]:
    """Find the Temporal server to use, or start the dev server.

    Yields:
        How to connect, and the dev server if this run shares it.

    Raises:
        UserError: The configuration cannot be read, or the dev server cannot be started.
    """
    from temporalio.envconfig import ClientConfig

    try:
        config = ClientConfig.load_client_connect_config()
    except Exception as error:  # the bridge's ConfigError is not a public name
        # What it quotes of the file may be a key.
        problem = re.sub(r" \| \d+ \| .* \| \^+ ", ": ", one_line(error))
        raise UserError(f"the Temporal configuration cannot be read: {problem}") from error
    if "target_host" in config:
        yield config, None
        return
    if config.get("tls"):
        raise UserError("an API key or TLS is configured for Temporal, but no address: set TEMPORAL_ADDRESS")
    from offline import PORT, CannotServe, dev_server

    config["target_host"] = f"localhost:{PORT}"
    try:
        async with dev_server(config.get("namespace", "default")) as server:
            yield config, server
    except CannotServe as error:
        raise UserError(one_line(error)) from error


async def connect(config: ClientConnectConfig, server: DevServer | None) -> Client:
    """Connect, with patience for a dev server that is just starting.

    Raises:
        UserError: Nothing there, or something else than a Temporal server, or one that refuses this client.
    """
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
    from temporalio.client import Client
    from temporalio.contrib.pydantic import pydantic_data_converter
    from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
    from temporalio.service import RPCError

    # The runtime logs to standard output by default.
    forwarding = LogForwardingConfig(logging.getLogger("temporal"))
    log = LoggingConfig(TelemetryFilter(core_level="ERROR", other_level="ERROR"), forwarding=forwarding)
    Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=log)))

    address, namespace = config["target_host"], config.get("namespace", "default")
    since, restarted = time.monotonic(), False
    while True:
        try:
            async with asyncio.timeout(5):
                client = await Client.connect(**config, data_converter=pydantic_data_converter)
                await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=namespace))
                if server is not None:
                    server.complete()
                return client
        except TimeoutError as error:
            advice = "is it a Temporal server? Free the port, or name a server in TEMPORAL_ADDRESS"
            raise UserError(f"{address} does not answer: {advice}") from error
        except (RuntimeError, ValueError, RPCError) as error:
            if server and (why := server.why_stopped()):
                if not restarted:  # it may have been killed, and not by its own fault
                    restarted = True
                    server.start_again()
                    continue
                raise UserError(f"the Temporal server did not start: {why}") from error
            # One that answers has what it has: it only makes its namespace a moment after it opens its port.
            patience = 2 if isinstance(error, RPCError) else START_SECONDS
            if server is None or time.monotonic() - since > patience:
                raise UserError(f"cannot use the Temporal server at {address}: {why_not(error)}") from error
            await asyncio.sleep(0.02)


def why_not(error: BaseException) -> str:
    """Why a server cannot be used, without the debugging output that the client library makes of it."""
    text = one_line(error)
    said = re.search(r'message: "(.*?)"', text)
    advice = next((advice for word, advice in CONNECT_ADVICE.items() if word in text), None)
    if advice is None:
        return said[1] if said else text
    return f"{said[1]}; {advice}" if said and "transport" not in text else advice


# ── The worker ───────────────────────────────────────────────────────────────────────────────────────────


def make_worker(client: Client, task_queue: str = TASK_QUEUE, calls: bool = True) -> Worker:
    """A worker for the agent's workflow and, unless it will end soon, for its calls."""
    from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
    from temporalio.worker import Worker, WorkerDeploymentConfig

    from activities import ModelActivities, tool_call_activity
    from durable import HEARTBEAT_THROTTLE, WORKFLOW_RUNNER
    from workflow import AgentWorkflow

    build_id = os.environ.get("TEMPORAL_WORKER_BUILD_ID")
    deployment_name = os.environ.get("TEMPORAL_DEPLOYMENT_NAME") or "durable-agent"
    deployment = WorkerDeploymentConfig(
        # Without a build id the worker makes one of the code of every module there is, which takes a second.
        version=WorkerDeploymentVersion(deployment_name=deployment_name, build_id=build_id or BUILD_ID),
        use_worker_versioning=bool(build_id),
        # A run stays with the build that it began with.
        default_versioning_behavior=VersioningBehavior.PINNED if build_id else VersioningBehavior.UNSPECIFIED,
    )
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[AgentWorkflow],
        activities=[ModelActivities().llm_stream_activity, tool_call_activity] if calls else [],
        workflow_runner=WORKFLOW_RUNNER,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        # How long a run waits for a worker that has it in its cache but died, before any other may take it.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=5),
        deployment_config=deployment,
    )


# ── The run ──────────────────────────────────────────────────────────────────────────────────────────────


async def start_or_join(client: Client, options: Options) -> Handle:
    """Start the run, or join the one that has its name already.

    Raises:
        UserError: There is no run to join, the name belongs to something else, or the query is too large.
    """
    from temporalio.client import WorkflowExecutionStatus
    from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
    from temporalio.exceptions import WorkflowAlreadyStartedError

    from activities import PAYLOAD_LIMIT
    from workflow import AgentRequest, AgentWorkflow

    run_id = options.id or f"agent-{uuid.uuid4().hex[:12]}"
    request = AgentRequest(query=options.query or DEFAULT_QUERY, model=options.model, approve=options.approve)
    size, limit = len(request.model_dump_json().encode()), PAYLOAD_LIMIT // 2
    if size > limit:  # the rest of the payload is for what a run carries over when it continues as new
        raise UserError(f"the query has {size:,} bytes, over the limit of {limit:,}: shorten it")
    handle = client.get_workflow_handle_for(AgentWorkflow.run, run_id)
    if options.id is None or options.query is not None:
        with suppress(WorkflowAlreadyStartedError):
            return await client.start_workflow(
                AgentWorkflow.run,
                request,
                id=run_id,
                task_queue=options.task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                request_eager_start=not options.no_worker,
                static_summary=title(request.query),
            )
    description = await describe(handle, options)
    if description.status == WorkflowExecutionStatus.RUNNING:
        say(f"Joining run {run_id}, which is under way.")
    else:
        say(f"Run {run_id} is over; this is what it came to.")
    return handle


async def describe(handle: Handle, options: Options) -> WorkflowExecutionDescription:
    """Look a run up.

    Raises:
        UserError: There is none of that name, it is something else than an agent, or it is not ours to work on.
    """
    from temporalio.client import WorkflowExecutionStatus
    from temporalio.service import RPCError, RPCStatusCode

    try:
        description = await handle.describe()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        raise UserError(f"there is no run called {handle.id!r}; add a query to start one") from error
    if description.workflow_type != "AgentWorkflow":
        raise UserError(f"{handle.id!r} is the id of a {description.workflow_type}, not of an agent: choose another")
    if description.status == WorkflowExecutionStatus.RUNNING and description.task_queue != options.task_queue:
        started = "offline" if description.task_queue == OFFLINE_TASK_QUEUE else "with an API key"
        raise UserError(f"run {handle.id!r} was started {started}: join it the same way")
    return description


async def answer_question(client: Client, options: Options) -> None:
    """Approve or refuse a tool call that waits for it.

    Raises:
        UserError: There is no such run, or no such call waits in it.
    """
    from temporalio.client import WorkflowExecutionStatus

    from workflow import AgentWorkflow

    handle = client.get_workflow_handle_for(AgentWorkflow.run, options.id or "")
    description = await describe(handle, options)
    if description.status != WorkflowExecutionStatus.RUNNING:
        raise UserError(f"run {handle.id!r} is over: nothing waits for an approval in it")
    call, approved = (options.yes, True) if options.yes is not None else (options.no or "", False)
    question = await patiently(lambda: send_answer(handle, call, approved, options.reason))
    say(f"{'Approved' if approved else 'Refused'}: {question}")
    say(f"Follow the run with: {REJOIN} {shlex.quote(handle.id)}")


async def send_answer(handle: Handle, call: str, approved: bool, reason: str) -> str:
    """Returns the question that was answered."""
    from temporalio.client import WorkflowUpdateFailedError, WorkflowUpdateRPCTimeoutOrCancelledError
    from temporalio.exceptions import FailureError

    from activities import APPROVAL, Approval

    try:
        answer = Approval(call=call, approved=approved, reason=reason)
        question: str = await handle.execute_update(APPROVAL, answer, result_type=str)
        return question
    except WorkflowUpdateFailedError as error:
        raise UserError(error.cause.message if isinstance(error.cause, FailureError) else one_line(error)) from error
    except WorkflowUpdateRPCTimeoutOrCancelledError as error:  # hides what it was: a Ctrl-C, or a lost server
        raise error.__cause__ or error from None


async def has_worker(client: Client, task_queue: str) -> bool:
    """Whether a worker has asked for work in the last minutes."""
    from temporalio.api.enums.v1 import TaskQueueType
    from temporalio.api.taskqueue.v1 import TaskQueue
    from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    return bool((await client.workflow_service.describe_task_queue(request)).pollers)


def title(text: str, length: int = 80) -> str:
    """The text in one short line; the server takes a summary of up to 400 bytes."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def markdown(text: str, style: str = "none") -> Markdown:
    """What models write, for a terminal. They mean the ends of their lines, which in Markdown are just spaces."""
    from rich.markdown import Markdown

    return Markdown(re.sub(r"(?<=\S)\n(?=\S)", "  \n", printable(text)), style=style)


def link(config: ClientConnectConfig, run_id: str) -> str | None:
    """The page of a run in the Web UI, where it can be known: a dev server's and Temporal Cloud's."""
    host, _, port = config["target_host"].rpartition(":")
    namespace = config.get("namespace", "default")
    path = f"namespaces/{quote(namespace, safe='')}/workflows/{quote(run_id, safe='')}"
    if host in ("localhost", "127.0.0.1", "[::1]") and not config.get("tls"):
        from offline import PORT, UI_PORT

        return f"http://localhost:{int(port) + UI_PORT - PORT}/{path}"
    return f"https://cloud.temporal.io/{path}" if host.endswith((".tmprl.cloud", ".temporal.io")) else None


SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MARKS = {"<": "✓", "x": "✗"}


class Screen:
    """Standard error: plain lines, or, in a terminal, lines with what is going on below them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(stderr=True) if in_color(sys.stderr) else None
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console else None
        self.can_ask = sys.platform != "win32" and bool(sys.stdin) and sys.stdin.isatty() and sys.stderr.isatty()
        self.tick = 0.08 if self.live else 0.5
        """Seconds between two looks at what is under way."""
        self._held: list[tuple[str, str, str]] | None = None  # lines that wait until a person has typed theirs

    def __enter__(self) -> None:
        if self.live:
            self.live.start()

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to the person who types."""
        self.__exit__()
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            for line in held:
                self.say(*line)
            self.__enter__()

    def say(self, mark: str, style: str, text: str) -> None:
        if self._held is not None:
            self._held.append((mark, style, text))
        elif self.console is None:
            say(f"  {mark} {text}")
        elif mark != ">":  # what is under way stands below
            from rich.text import Text

            line = Text.assemble((f"  {MARKS.get(mark, mark)} ", style), printable(text))
            if mark == "<":  # how it ended is what counts; what is wrong, or is asked, stands there whole
                line.truncate(self.console.width, overflow="ellipsis")
            self.console.print(line, soft_wrap=True)

    def show(self, steps: Iterable[Step]) -> None:
        """Show what is going on; in a terminal only."""
        if self.live is None or self.console is None or not self.live.is_started:
            return
        from rich.console import Group
        from rich.segment import Segment, Segments
        from rich.text import Text

        width, height = self.console.size
        steps = list(steps)[: max(1, height - 3)]
        spinner = SPINNER[int(time.monotonic() * 10) % len(SPINNER)]
        rows: list[RenderableType] = []
        for step in steps:
            seconds = f" {step.seconds():.0f} s"
            row = Text(f"  {spinner} {printable(step.summary)}")
            row.truncate(max(1, width - len(seconds)), overflow="ellipsis")
            rows.append(row.append(seconds))
        room = max(1, height - len(rows) - 2)
        lines: list[list[Segment]] = []
        for step in steps:
            for text, style in ((step.reasoning, "dim italic"), (step.text, "none")):
                # What was written last is what counts, and rendering all of a long text takes too long to be live.
                tail = text[-2 * room * width :]
                lines += self.console.render_lines(markdown(tail, style), pad=False) if tail else []
        rows.append(Segments([segment for line in lines[-room:] for segment in [*line, Segment.line()]]))
        self.live.update(Group(*rows), refresh=True)


@dataclass
class Step:
    """A model or tool call that is under way."""

    summary: str
    since: datetime
    of_model: bool
    attempt: int = 1
    text: str = ""
    reasoning: str = ""

    def seconds(self, until: datetime | None = None) -> float:
        return ((until or datetime.now(UTC)) - self.since).total_seconds()


class Progress:
    """Follows a run and shows what it does: each call as it starts and ends, failed attempts, the text as it comes."""

    def __init__(self, client: Client, handle: Handle, screen: Screen) -> None:
        self._client = client
        self._handle = handle
        self._screen = screen
        self._steps: dict[str, Step] = {}  # under way, by activity id
        self._by_event: dict[int, str] = {}
        self._told: set[tuple[str, int]] = set()
        self._news = asyncio.Event()  # the questions have changed
        self._run_id: str | None = None  # none: the latest
        self._seen = 0
        self._began = self._ended = datetime.now(UTC)
        self._models = self._tools = self._tokens_in = self._tokens_out = 0

    async def follow(self) -> None:
        """Show every step until the run is over."""
        with self._screen:
            async with asyncio.TaskGroup() as tasks:
                others = [
                    tasks.create_task(patiently(follow)) for follow in (self._follow_pending, self._follow_questions)
                ]
                await patiently(self._follow_steps)
                for task in others:
                    task.cancel()

    def summary(self) -> str:
        seconds = (self._ended - self._began).total_seconds()
        calls = f"{counted(self._models, 'model call')}, {counted(self._tools, 'tool call')}"
        return f"{calls}, {self._tokens_in:,} tokens in, {self._tokens_out:,} out, {seconds:.1f} s"

    # ── What is done ──

    async def _follow_steps(self) -> None:
        # A run that continues as new has a history of its own for each part.
        while self._run_id != "":
            handle = self._client.get_workflow_handle(self._handle.id, run_id=self._run_id)
            # A long poll: the server answers when there is something new.
            async for event in handle.fetch_history_events(wait_new_event=True):
                if event.event_id > self._seen:
                    self._seen = event.event_id
                    await self._show(event)
                    self._screen.show(self._steps.values())
            self._run_id = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
            self._seen = 0
            self._steps, self._by_event, self._told = {}, {}, set()

    async def _show(self, event: HistoryEvent) -> None:
        from activities import APPROVALS_MEMO
        from workflow import AgentRequest

        now = self._ended = event.event_time.ToDatetime(UTC)
        kind = event.WhichOneof("attributes") or ""
        if kind == "workflow_execution_started_event_attributes":
            started = event.workflow_execution_started_event_attributes
            self._run_id = started.original_execution_run_id
            request = await self._decode(started.input, AgentRequest)
            self._began = min(self._began, now)
            if request.carried is not None:
                self._models, self._tools = request.carried.calls, len(request.carried.checkpoint.tools)
                self._tokens_in = self._tokens_out = 0
                self._count(request.carried.usage)
        elif kind == "activity_task_scheduled_event_attributes":
            scheduled = event.activity_task_scheduled_event_attributes
            [summary] = await self._client.data_converter.decode([event.user_metadata.summary], [str])
            self._by_event[event.event_id] = scheduled.activity_id
            self._steps[scheduled.activity_id] = Step(
                summary, now, of_model=scheduled.activity_type.name == "llm_stream_activity"
            )
            self._screen.say(">", "", summary)
        elif kind == "activity_task_started_event_attributes":
            started_activity = event.activity_task_started_event_attributes
            self._steps[self._by_event[started_activity.scheduled_event_id]].attempt = started_activity.attempt
        elif end := ENDINGS.get(kind):
            step = self._steps.pop(self._by_event.pop(getattr(event, kind).scheduled_event_id))
            self._models, self._tools = self._models + step.of_model, self._tools + (not step.of_model)
            attempts = f", attempt {step.attempt}" if step.attempt > 1 else ""
            result = await self._result(event, step)
            mark, style = ("<", "green") if "completed" in kind else ("x", "red")
            self._screen.say(mark, style, f"{step.summary} {end} {step.seconds(now):.1f} s{attempts}{result}")
        elif kind == "workflow_properties_modified_event_attributes":
            memo = event.workflow_properties_modified_event_attributes.upserted_memo.fields
            if APPROVALS_MEMO in memo:
                self._news.set()

    async def _result(self, event: HistoryEvent, step: Step) -> str:
        """What came of a call, in short."""
        from pydantic_core import to_json

        from activities import ModelReply, ToolReply

        if not event.HasField("activity_task_completed_event_attributes"):
            if not event.HasField("activity_task_failed_event_attributes"):
                return ""
            return f": {await self._message(event.activity_task_failed_event_attributes.failure)}"
        payloads = event.activity_task_completed_event_attributes.result
        if step.of_model:
            usage = (await self._decode(payloads, ModelReply)).message.usage
            self._count(usage)
            return f": {usage.input_tokens:,} tokens in, {usage.output_tokens:,} out" if usage else ""
        return f": {title(to_json((await self._decode(payloads, ToolReply)).result).decode(), 120)}"

    def _count(self, usage: Usage | None) -> None:
        self._tokens_in += usage.input_tokens if usage else 0
        self._tokens_out += usage.output_tokens if usage else 0

    async def _message(self, failure: Failure) -> str:
        from temporalio.exceptions import FailureError

        error = await self._client.data_converter.decode_failure(failure)  # what it says may be encrypted
        return error.message if isinstance(error, FailureError) else one_line(error)

    async def _decode[T](self, payloads: Payloads, type: type[T]) -> T:
        [value] = await self._client.data_converter.decode(payloads.payloads, [type])
        return cast("T", value)

    # ── What is under way ──

    async def _follow_pending(self) -> None:
        # Attempts, and the text of an answer that is not whole yet, are not in the history, only in the description.
        looked = 0.0
        while True:
            await asyncio.sleep(self._screen.tick)
            of_model = any(step.of_model for step in self._steps.values())
            if self._steps and (of_model or time.monotonic() - looked > 0.4):  # tools tell less
                looked = time.monotonic()
                description = await self._handle.describe()
                for pending in description.raw_description.pending_activities:
                    await self._show_pending(pending)
            self._screen.show(self._steps.values())

    async def _show_pending(self, pending: PendingActivityInfo) -> None:
        from activities import LiveText

        step, failed = self._steps.get(pending.activity_id), pending.attempt - 1
        if step is None:
            return
        step.text = step.reasoning = ""
        if step.of_model and pending.heartbeat_details.payloads:
            live = await self._decode(pending.heartbeat_details, LiveText)
            if live.attempt == pending.attempt:  # or it is the text of one that failed
                step.text, step.reasoning = "…" * bool(live.start) + live.text, live.reasoning
        if failed and (pending.activity_id, failed) not in self._told:
            self._told.add((pending.activity_id, failed))
            wait = (pending.next_attempt_schedule_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()
            waiting = pending.HasField("next_attempt_schedule_time") and wait > 0.5
            when = f"next one in {wait:.0f} s" if waiting else "next one now"
            message = f"attempt {failed} failed: {await self._message(pending.last_failure)}"
            self._screen.say("!", "yellow", f"{step.summary}: {message}; {when}")

    # ── What waits for a person ──

    async def _follow_questions(self) -> None:
        asked: set[str] = set()
        while True:
            questions = {call: text for call, text in (await self._open_questions()).items() if call not in asked}
            if not questions:
                await self._news.wait()
                self._news.clear()
                continue
            call, question = next(iter(questions.items()))
            asked.add(call)
            self._screen.say("?", "cyan", f"{question} waits for an approval")
            if self._screen.can_ask:
                with self._screen.paused():
                    await self._ask(call, question)
            else:
                command = f"{REJOIN} {shlex.quote(self._handle.id)}"
                self._screen.say(" ", "", f"    {command} --yes {call}")
                self._screen.say(" ", "", f'    {command} --no {call} --reason "…"')

    async def _open_questions(self) -> dict[str, str]:
        from activities import APPROVALS_MEMO

        # The history tells of old questions too; the description knows which are open.
        questions: dict[str, str] = (await (await self._handle.describe()).memo()).get(APPROVALS_MEMO, {})
        return questions

    async def _ask(self, call: str, question: str) -> None:
        word = ""
        while word.lower() not in ("y", "yes", "n", "no"):
            forget_what_was_typed()
            print("    Allow it? (y, or n and why) ", end="", file=sys.stderr, flush=True)
            line = asyncio.create_task(read_line())
            try:
                while not line.done():
                    news = asyncio.create_task(self._news.wait())
                    await asyncio.wait([line, news], return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                    self._news.clear()
                    if not line.done() and call not in await self._open_questions():
                        say("It was answered elsewhere.")
                        return
            finally:
                line.cancel()
            if not line.result():  # Ctrl-D
                say("")
            word, _, reason = line.result().strip().partition(" ")
        approved = word.lower().startswith("y")
        with suppress(UserError):  # somebody else was faster
            await patiently(lambda: send_answer(self._handle, call, approved, reason))
            if not approved:
                self._screen.say("x", "red", f"{question} refused{f': {reason}' if reason else ''}")


def forget_what_was_typed() -> None:
    """What was typed before a question does not answer it."""
    import termios

    termios.tcflush(sys.stdin, termios.TCIFLUSH)


async def read_line() -> str:
    """Read a line from the terminal, in a way that can be cancelled."""
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        if not line.done():
            line.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin, read)
    try:
        return await line
    finally:
        loop.remove_reader(sys.stdin)


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


ENDINGS = {
    "activity_task_completed_event_attributes": "done in",
    "activity_task_failed_event_attributes": "FAILED after",
    "activity_task_timed_out_event_attributes": "TIMED OUT after",
    "activity_task_canceled_event_attributes": "cancelled after",
}


async def follow(handle: Handle, progress: Progress) -> AgentAnswer:
    """Show the run's progress and return its answer.

    Raises:
        UserError: The run failed, was cancelled, terminated or timed out.
    """
    from temporalio.client import WorkflowFailureError
    from temporalio.service import RPCError

    showing = asyncio.create_task(progress.follow())
    try:
        answer = await patiently(handle.result, notice=True)
        await asyncio.wait([showing], timeout=2)  # the last lines may be a moment behind the result
        return answer
    except WorkflowFailureError as error:
        await asyncio.wait([showing], timeout=2)
        raise UserError(why_failed(error)) from error
    except (UserError, RPCError):
        raise
    except Exception as error:  # whatever a data converter raises
        problem = f"the run cannot be read here ({one_line(error)}): is it encrypted, or stored elsewhere?"
        raise UserError(problem) from error
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)  # what is wrong there is wrong with the result too


async def patiently[T](call: Callable[[], Awaitable[T]], notice: bool = False) -> T:
    """Await a call to the server, again and again while the server cannot be reached.

    Raises:
        UserError: The server was gone for longer than `LOST_SECONDS`.
    """
    from temporalio.service import RPCError, RPCStatusCode

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
                if notice:
                    say("Lost the Temporal server; waiting for it to come back.")
            if time.monotonic() - lost > LOST_SECONDS:
                advice = f"when it is back, rejoin the run with: {REJOIN} ID"
                raise UserError(f"the Temporal server does not come back ({one_line(error)}); {advice}") from error
            await asyncio.sleep(1)


def why_failed(error: BaseException) -> str:
    """The failure that ended a run in one line, and what to do about it."""
    from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError

    while error.__cause__ is not None and not isinstance(error, ApplicationError):
        error = error.__cause__
    match error:
        case CancelledError():
            return "the run was cancelled"
        case TerminatedError():
            return f"the run was terminated: {one_line(error)}"
        case ApplicationError(message=message, type=kind):
            advice = ADVICE.get(message[:8]) or ADVICE.get(kind or "", "")
            return f"the run failed: {' '.join(message.split()).rstrip('.')}. {advice}".rstrip()
        case _:
            return f"the run failed: {one_line(error)}"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


async def submit(client: Client, config: ClientConnectConfig, options: Options) -> None:
    """Start or join the run, follow it, and print its answer."""
    handle = await start_or_join(client, options)
    say(f"Run {handle.id}")
    if page := link(config, handle.id):
        say(f"    {page}")
    if options.no_worker and not await has_worker(client, options.task_queue):
        say(f"No worker serves the task queue {options.task_queue}; waiting for one.")
    progress = Progress(client, handle, Screen())
    try:
        answer = await follow(handle, progress)
    except asyncio.CancelledError:
        say(f"Interrupted. The run itself goes on; follow it with: {REJOIN} {shlex.quote(handle.id)}")
        raise
    if cut := CUT_SHORT.get(answer.finish_reason or ""):
        say(f"The answer was cut short by {cut}.")
    if in_color(sys.stdout):
        say("")
    print_answer(answer.text)
    if in_color(sys.stdout):
        say("")
    say(progress.summary())


async def run(options: Options) -> int:
    """Do what the command line says, and return the exit status."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupted: float | None = None

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if interrupted is None:
            interrupted = time.monotonic()
            loop.call_soon_threadsafe(task.cancel)
        elif time.monotonic() - interrupted > 1:  # a signal may come twice, to the process and to its group
            os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)

    from temporalio.service import RPCError

    try:
        async with AsyncExitStack() as stack:
            config, server = await stack.enter_async_context(temporal_server())
            client = await connect(config, server)
            if server is not None:
                keeper = asyncio.create_task(server.keep_running())
                stack.callback(keeper.cancel)
            if not options.no_worker:
                await stack.enter_async_context(make_worker(client, options.task_queue, calls=not options.answers))
            if options.worker:
                say(f"Worker on {config['target_host']} is ready. Ctrl-C stops it.")
                await asyncio.Event().wait()
            if options.answers:
                await answer_question(client, options)
                return 0
            await submit(client, config, options)
            if server is not None:
                say(f"To look back: {WORKER}, and open the page above. Ctrl-C stops it.")
            return 0
    except RPCError as error:
        raise UserError(f"the Temporal server refused: {one_line(error)}") from error
    except RuntimeError as error:
        raise UserError(f"the worker stopped: {one_line(error)}") from error
    except asyncio.CancelledError:
        if interrupted is None:
            raise UserError("the worker stopped") from None
        return 0 if options.worker else 130


def in_color(stream: IO[str] | None) -> bool:
    """Whether control codes are welcome there."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return not plain and stream is not None and stream.isatty()


def print_answer(text: str) -> None:
    if sys.stdout is None:  # closed by whoever started this
        raise UserError("the answer cannot be written: there is no standard output")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no "°" is no reason to lose the answer
    try:
        if in_color(sys.stdout):
            from rich.console import Console

            Console().print(markdown(text))
        else:
            print(printable(text) if sys.stdout.isatty() else text, flush=True)
    except BrokenPipeError:
        pass  # whoever read it has read enough
    except OSError as error:
        raise UserError(f"the answer cannot be written: {one_line(error)}") from error


def main() -> int:
    logging.basicConfig(level=logging.ERROR, handlers=[handler := logging.StreamHandler()])
    handler.setFormatter(OneLine("%(name)s: %(message)s"))
    try:
        options = parse(sys.argv[1:])
        with ExitStack() as stack:
            if options.offline and not options.no_worker:
                import offline

                say(offline.NOTICE)
                os.environ.update(offline.environment(stack.enter_context(offline.serve())))
            return asyncio.run(run(options))
    except UserError as error:
        say(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    status = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):
            stream.flush()
    # Not sys.exit(): when the interpreter takes itself down, threads of the Temporal runtime may still be running in
    # it, and every few exits one of them crashes the process.
    os._exit(status)
