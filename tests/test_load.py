"""Much at once: waits are cheap, nothing is asked twice because a process is busy, and connections are kept.

The numbers are those of the issue on load. `Wire` stands in for the gateway where the connections themselves matter.
"""

import asyncio
import functools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, ClassVar, override

import agents
import httpx
import pytest
import vercel_ai_sdk as ai
from conftest import ROOT, RunMain, StartMain, make_worker
from processes import end, first_line, kill, line_with
from standin import Reply, StandIn, event, hang, held, parts, raw, text, text_parts
from standin import tools as calls
from temporalio import activity
from temporalio.api.enums.v1 import EventType, PendingActivityState
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    Interceptor,
    Replayer,
    Worker,
    WorkerTuner,
)

import bridge.heartbeats
import bridge.limits
import tools
from activities import tool_call_activity
from app.command_line import TASK_QUEUE
from app.demo import Part, finish
from bridge.pacing import MANY
from bridge.tools import tool_functions
from bridge.watching import watch
from bridge.wire import LiveText, ToolCall
from options.gateway import GatewayFailure, GatewayModel
from plugin import DurableAgents
from workflow import AgentWorkflow
from workflow_types import AgentRequest

BOUND = 30
"""Seconds, for what takes a few."""

type Start = Callable[..., Awaitable[WorkflowHandle[Any, Any]]]
type AskMany = Callable[..., Awaitable[list[str]]]


@pytest.fixture
def start(client: Client, queue: str, standin: StandIn) -> Start:
    async def start(cls: type, request: object = "go", *, task_queue: str = queue) -> WorkflowHandle[Any, Any]:
        run = cls.run  # type: ignore[attr-defined]  # every workflow has one
        return await client.start_workflow(run, request, id=uuid.uuid4().hex, task_queue=task_queue)

    return start


async def result_of(handle: WorkflowHandle[Any, Any], seconds: float = BOUND) -> Any:
    async with asyncio.timeout(seconds):
        return await handle.result()


async def arrived(standin: StandIn, calls: int) -> None:
    await asyncio.to_thread(standin.wait_for, calls=calls, seconds=BOUND)


async def until[T](look: Callable[[], Awaitable[T | None]]) -> T:
    """Look again and again until there is something."""
    async with asyncio.timeout(BOUND):
        while (found := await look()) is None:
            pass
    return found


async def attempts_of(handle: WorkflowHandle[Any, Any]) -> list[int]:
    """The attempt in which each activity of a run succeeded."""
    events = (await handle.fetch_history()).events
    started = [event for event in events if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED]
    return [event.activity_task_started_event_attributes.attempt for event in started]


# ── Processes ────────────────────────────────────────────────────────────────────────────────────────────


class Gateway:
    """A process of benchmarks/load_gateway.py: it counts what comes, and answers questions about `City N`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment = {
            "AI_GATEWAY_API_KEY": "test-key-0123456789",
            "AI_GATEWAY_BASE_URL": f"{url}/v3/ai",
            "OPEN_METEO_GEOCODING_URL": f"{url}/v1/search",
        }

    async def stats(self) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False) as client:
            stats: dict[str, Any] = (await client.get(f"{self.url}/stats")).json()
            return stats


type OpenGateway = Callable[..., Gateway]


@pytest.fixture
def open_gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenGateway]:
    """Start a `Gateway` with options of its command line, and have the calls of this process go there."""
    with ExitStack() as stack:

        def open(**options: float) -> Gateway:
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "benchmarks" / "load_gateway.py"), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(end, process)
            gateway = Gateway(json.loads(first_line(process))["url"])
            for name, value in gateway.environment.items():
                monkeypatch.setenv(name, value)
            return gateway

        yield open


@pytest.fixture
def ask_many(client: Client) -> AskMany:
    """Have many agents ask about their cities at once, on a task queue. Returns their answers."""

    async def ask(agent: int, queue: str) -> str:
        request = AgentRequest(query=f"How many people live in City {agent:05}?", model="load/model")
        handle = await client.start_workflow(AgentWorkflow.run, request, id=uuid.uuid4().hex, task_queue=queue)
        answer: str = (await result_of(handle, 60)).text
        return answer

    async def ask_many(agents: int, queue: str) -> list[str]:
        return await asyncio.gather(*(ask(agent, queue) for agent in range(agents)))

    return ask_many


async def wait_for_line(process: subprocess.Popen[str], words: str) -> None:
    await asyncio.to_thread(line_with, process, words, seconds=BOUND)


def serve_activities(address: str, queue: str, stuck_seconds: str) -> None:
    """In a process of its own: a worker with the activities only, two of them at once."""
    bridge.heartbeats.STUCK_SECONDS = float(stuck_seconds)

    async def serve() -> None:
        client = await Client.connect(address, plugins=[DurableAgents(GatewayModel)])
        async with Worker(client, task_queue=queue, max_concurrent_activities=2):
            await asyncio.Event().wait()

    asyncio.run(serve())


@contextmanager
def activity_worker(client: Client, queue: str, stuck_seconds: float) -> Iterator[None]:
    """Have a process with the activities while the body runs, for the services in the environment."""
    code = "import sys, conftest, test_load; test_load.serve_activities(*sys.argv[1:])"
    address = client.service_client.config.target_host
    process = subprocess.Popen(
        [sys.executable, "-c", code, address, queue, str(stuck_seconds)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )
    try:
        yield
    finally:
        kill(process)


@asynccontextmanager
async def workflow_worker(client: Client) -> AsyncIterator[str]:
    """Have a worker without activities while the body runs. Yields its task queue."""
    address = client.service_client.config.target_host
    async with make_worker(await Client.connect(address, plugins=[DurableAgents()]), queue := uuid.uuid4().hex):
        yield queue


# ── 1. Slots ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_1_more_calls_than_a_hundred_wait_at_once_in_one_worker(start: Start, standin: StandIn) -> None:
    release = threading.Event()
    standin.play(*[held(release, text("the answer"))] * 120)
    handles = [await start(agents.AnswerWorkflow) for _ in range(120)]
    try:
        await arrived(standin, 120)
    finally:
        release.set()
    assert await asyncio.gather(*map(result_of, handles)) == ["the answer"] * 120
    assert len(standin.calls) == 120


async def test_1_a_process_takes_on_as_many_as_the_command_line_says(
    start_main: StartMain, open_gateway: OpenGateway, ask_many: AskMany
) -> None:
    gateway = open_gateway(first=0.2, tokens=2, rate=20)
    worker = start_main("--worker", "--max-activities", "2", env=gateway.environment)
    await wait_for_line(worker, "ready")
    answers = await ask_many(8, TASK_QUEUE)
    stats = await gateway.stats()
    assert [bool(answer) for answer in answers] == [True] * 8
    assert (stats["peak"], stats["answers"]) == (2, 8)


@pytest.mark.parametrize("number", ["0", "-3", "x", "", "1.5", "\u0663"])
def test_1_a_wrong_number_is_one_line(run_main: RunMain, number: str) -> None:
    result = run_main("--worker", "--max-activities", number)
    assert (result.returncode, result.stdout) == (2, "")
    problem = f"main.py: error: argument --max-activities: {number!r} is no number above 0"
    assert result.stderr.splitlines()[-1] == problem
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("own", ["number", "tuner", "tasks"])
async def test_1_a_worker_keeps_its_own_slots(
    client: Client, open_gateway: OpenGateway, ask_many: AskMany, own: str
) -> None:
    gateway = open_gateway(first=0.2, tokens=2, rate=20)
    options: dict[str, dict[str, Any]] = {
        "number": {"max_concurrent_activities": 1},
        "tuner": {
            "tuner": WorkerTuner.create_fixed(workflow_slots=5, activity_slots=1, local_activity_slots=1, nexus_slots=1)
        },
        # Temporal takes no tuner beside these.
        "tasks": {
            "max_concurrent_workflow_tasks": 5,
            "max_concurrent_local_activities": 5,
            "max_concurrent_nexus_tasks": 5,
        },
    }
    async with make_worker(client, queue := uuid.uuid4().hex, **options[own]):
        await ask_many(3, queue)
    assert (await gateway.stats())["peak"] == (3 if own == "tasks" else 1)


ALLOW_FILES = 'ulimit -S -n "$1" && ulimit -H -n "$2" && shift 2 && exec "$@"'
"""For a shell. Python code between the fork and the start of the program (`preexec_fn`) may hang where a process has
threads, and these tests have those of Temporal and of the stand-ins: whoever starts the program hangs then, too."""


@pytest.fixture
def start_with_files(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `main.py --worker` where the system allows few open files."""
    with ExitStack() as stack:

        def start(soft: int, hard: int, env: dict[str, str]) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [
                    "sh",
                    "-c",
                    ALLOW_FILES,
                    "sh",
                    str(soft),
                    str(hard),
                    sys.executable,
                    str(ROOT / "main.py"),
                    "--worker",
                ],
                env={**environment, **env},
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(end, process)
            return process

        yield start


async def test_1_the_limit_on_open_files_is_raised(
    client: Client, standin: StandIn, start_with_files: Callable[..., subprocess.Popen[str]]
) -> None:
    release = threading.Event()
    standin.play(*[held(release, text("the answer"))] * 80)
    await wait_for_line(start_with_files(64, 4096, standin.environment), "ready")
    request = AgentRequest(query="?", model="test/model")
    handles = [
        await client.start_workflow(AgentWorkflow.run, request, id=uuid.uuid4().hex, task_queue=TASK_QUEUE)
        for _ in range(80)
    ]
    try:
        await arrived(standin, 80)
    finally:
        release.set()
    answers = await asyncio.gather(*map(result_of, handles))
    assert [answer.text for answer in answers] == ["the answer"] * 80
    assert len(standin.calls) == 80


@pytest.mark.parametrize(("files", "most"), [(230, 30), (150, 1)])
async def test_1_a_process_that_may_open_few_files_takes_on_fewer(
    open_gateway: OpenGateway,
    ask_many: AskMany,
    start_with_files: Callable[..., subprocess.Popen[str]],
    files: int,
    most: int,
) -> None:
    gateway = open_gateway(first=0.5 if most > 1 else 0, tokens=1)
    await wait_for_line(start_with_files(files, files, gateway.environment), "ready")
    agents = 50 if most > 1 else 5
    answers = await ask_many(agents, TASK_QUEUE)
    stats = await gateway.stats()
    assert [bool(answer) for answer in answers] == [True] * agents
    assert list(stats["calls"].values()) == [[1, 1]] * agents
    assert stats["peak"] <= most


# ── 2. No call twice ─────────────────────────────────────────────────────────────────────────────────────


async def test_2_a_blocked_event_loop_loses_no_call(client: Client, start: Start, standin: StandIn) -> None:
    release = threading.Event()
    standin.play(held(release, text("one")), calls(("1", "block", {"seconds": 3})), text("two"))
    # Often enough for timeouts of a second.
    async with make_worker(client, queue := uuid.uuid4().hex, max_heartbeat_throttle_interval=timedelta(seconds=0.1)):
        model = await start(agents.PulsingWorkflow, 1, task_queue=queue)
        await arrived(standin, 1)
        tool = await start(agents.PulsingWorkflow, 1, task_queue=queue)
        assert await result_of(tool) == "two"
        release.set()
        assert await result_of(model) == "one"
    assert [call.tool_results for call in standin.calls[:2]] == [[], []]
    assert [result["output"]["value"] for result in standin.calls[2].tool_results] == [1]
    assert (await attempts_of(model), await attempts_of(tool)) == ([1], [1, 1, 1])
    assert len(standin.calls) == 3


async def test_2_a_call_that_is_begun_late_is_not_lost(client: Client, start: Start, standin: StandIn) -> None:
    release = threading.Event()
    one, two = (held(release, text("the answer")) for _ in range(2))
    standin.play(calls(("1", "block", {"seconds": 3.2})), one, two)
    async with workflow_worker(client) as queue:
        with activity_worker(client, queue, stuck_seconds=60):
            tool = await start(agents.PulsingWorkflow, 4, task_queue=queue)
            await until(functools.partial(is_in_tool, tool))
            model = await start(agents.PulsingWorkflow, 4, task_queue=queue)  # and its event loop is blocked

            async def beats() -> bool | None:
                [pending] = (await model.describe()).raw_description.pending_activities or [None]
                return (pending is not None and pending.HasField("last_heartbeat_time")) or None

            await until(beats)
            release.set()
            assert [await result_of(model), await result_of(tool)] == ["the answer"] * 2
    assert (await attempts_of(model), await attempts_of(tool)) == ([1], [1, 1, 1])
    assert len(standin.calls) == 3


async def test_2_a_process_that_stood_still_goes_on_with_its_call(start_main: StartMain, standin: StandIn) -> None:
    going_on = threading.Event()
    first, second, third, last = text_parts("the ", "answer")
    standin.play(
        calls(("1", "get_weather", {"city": "Tokyo"})),
        parts(first, second, going_on, third, last, finish("stop")),
    )
    process = start_main("Weather?", env=standin.environment)
    await arrived(standin, 2)
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(4)  # how long it stands still
    process.send_signal(signal.SIGCONT)
    going_on.set()
    out, err = await asyncio.to_thread(process.communicate, timeout=BOUND)
    assert (process.returncode, out) == (0, "the answer\n"), err
    assert (len(standin.calls), standin.lookups) == (2, ["Tokyo"])


async def test_2_a_worker_that_is_stuck_for_good_loses_its_calls_to_another(
    client: Client, start: Start, standin: StandIn
) -> None:
    standin.play(hang(), calls(("1", "block", {"seconds": 600})), text("one"), text("two"))
    async with workflow_worker(client) as queue:
        with activity_worker(client, queue, stuck_seconds=1):
            model = await start(agents.PulsingWorkflow, 1, task_queue=queue)
            await arrived(standin, 1)
            tool = await start(agents.PulsingWorkflow, 1, task_queue=queue)
            await arrived(standin, 2)
            await until(functools.partial(is_in_tool, tool))
            async with Worker(client, task_queue=queue):
                answers = [await result_of(model), await result_of(tool)]
    assert sorted(answers) == ["one", "two"]
    assert len(standin.calls) == 4
    assert await attempts_of(model) == [2]
    assert await attempts_of(tool) == [1, 2, 1]


async def is_in_tool(handle: WorkflowHandle[Any, Any]) -> bool | None:
    for pending in (await handle.describe()).raw_description.pending_activities:
        started = pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        if started and pending.activity_type.name == "tool_call_activity":
            return True
    return None


@pytest.mark.parametrize("call", ["model", "tool"])
async def test_2_a_cancelled_run_cancels_its_calls(start: Start, standin: StandIn, call: str) -> None:
    closed: list[threading.Event] = []
    if call == "tool":

        def geocoding(asked: Any) -> Any:
            closed.append(asked.closed)
            return hang()(asked)

        standin.geocoding = geocoding
        standin.play(calls(("1", "get_weather", {"city": "Tokyo"})))
    else:
        standin.play(hang(*text_parts("half")))
    handle = await start(AgentWorkflow, AgentRequest(query="Weather?", model="test/model"))
    await asyncio.to_thread(standin.wait_for, calls=1, lookups=int(call == "tool"))
    await handle.cancel()
    event = closed[0] if call == "tool" else standin.calls[0].closed
    assert await asyncio.to_thread(event.wait, 5)
    with pytest.raises(WorkflowFailureError):
        await result_of(handle)
    assert len(standin.calls) == 1


# ── 3. Live text ─────────────────────────────────────────────────────────────────────────────────────────


async def pending_of(handle: WorkflowHandle[Any, Any]) -> Any:
    [pending] = (await handle.describe()).raw_description.pending_activities
    return pending


async def live_text_of(handle: WorkflowHandle[Any, Any], client: Client) -> LiveText | None:
    """What anybody can read of the answer so far."""
    payloads = (await pending_of(handle)).heartbeat_details.payloads
    if not payloads:
        return None
    [live] = await client.data_converter.decode(payloads, [LiveText])
    assert isinstance(live, LiveText)
    return live


@pytest.fixture
def reads(client: Client) -> Callable[..., Awaitable[None]]:
    async def reads(handle: WorkflowHandle[Any, Any], expected: str | None) -> None:
        """Wait until this is the text that anybody can read."""

        async def look() -> bool | None:
            live = await live_text_of(handle, client)
            return (live.text if live else None) == expected or None

        await until(look)

    return reads


async def event_types(handle: WorkflowHandle[Any, Any]) -> list[int]:
    return [event.event_type for event in (await handle.fetch_history()).events]


async def test_3_text_is_shown_while_somebody_watches_and_costs_no_history(
    client: Client, start: Start, standin: StandIn, reads: Callable[..., Awaitable[None]]
) -> None:
    more, end = threading.Event(), threading.Event()
    first, one, two, three, last = text_parts("one ", "two ", "three")
    answer = parts(first, one, two, more, three, end, last, finish("stop"))
    standin.play(answer, answer)
    async with make_worker(client, queue := uuid.uuid4().hex, max_heartbeat_throttle_interval=timedelta(seconds=0.1)):
        watched = await start(agents.PulsingWorkflow, 1, task_queue=queue)
        await arrived(standin, 1)

        async def beats() -> tuple[int, int] | None:
            time = (await pending_of(watched)).last_heartbeat_time
            return (time.seconds, time.nanos) if time.seconds else None

        seen: set[tuple[int, int]] = set()
        while len(seen) < 3:  # heartbeats
            seen.add(await until(beats))
            assert await live_text_of(watched, client) is None
        await watch(watched, seconds=2)
        await reads(watched, "one two ")  # from the beginning, for whom came in the middle
        await reads(watched, None)  # nobody watches any more
        await watch(watched)
        await reads(watched, "one two ")
        more.set()
        await reads(watched, "one two three")
        end.set()
        assert await result_of(watched) == "one two three"
        unwatched = await start(agents.PulsingWorkflow, 1, task_queue=queue)
        assert await result_of(unwatched) == "one two three"
    assert await event_types(watched) == await event_types(unwatched)
    assert await attempts_of(watched) == [1]


async def test_3_text_is_shown_by_a_process_that_does_not_have_the_run(
    client: Client, start: Start, standin: StandIn, reads: Callable[..., Awaitable[None]]
) -> None:
    more, end = threading.Event(), threading.Event()
    first, one, two, last = text_parts("one ", "two")
    standin.play(parts(first, one, more, two, end, last, finish("stop")), text("whole"))
    async with workflow_worker(client) as queue:
        with activity_worker(client, queue, stuck_seconds=60):
            watched = await start(agents.AnswerWorkflow, task_queue=queue)
            await arrived(standin, 1)
            await watch(watched)
            await reads(watched, "one ")
            more.set()
            await reads(watched, "one two")
            end.set()
            assert await result_of(watched) == "one two"
            unwatched = await start(agents.AnswerWorkflow, task_queue=queue)
            assert await result_of(unwatched) == "whole"
    assert await event_types(watched) == await event_types(unwatched)


async def test_3_watching_a_run_that_has_asked_nothing_yet_harms_nothing(start: Start, standin: StandIn) -> None:
    standin.play(text("the answer"))
    handle = await start(agents.LaterWorkflow)
    with pytest.raises(WorkflowQueryFailedError):
        await watch(handle)
    await handle.signal(agents.LaterWorkflow.begin)
    assert await result_of(handle) == "the answer"
    await watch(handle)  # nor does watching one that is over


class CountingModel(GatewayModel):
    """The model as it is. Remembers each text that it yielded."""

    yielded: ClassVar[list[str]] = []

    @override
    async def stream(self, messages: list[ai.Message], *args: Any, **options: Any) -> AsyncGenerator[ai.Message]:
        async for message in super().stream(messages, *args, **options):
            if any(message.text.startswith("counted") for message in messages):
                self.yielded.append(message.text)
            yield message


@pytest.mark.parametrize("others", [0, MANY])
async def test_3_a_busy_worker_takes_in_at_once_what_came_together(
    client: Client, start: Start, standin: StandIn, reads: Callable[..., Awaitable[None]], others: int
) -> None:
    end = threading.Event()
    words = [f"{number} " for number in range(30)]
    first, *deltas, last = map(event, text_parts(*words, *words))
    together, rest = b"".join([first, *deltas[:30]]), b"".join(deltas[30:])
    standin.play(*[held(end, text("the answer"))] * others)
    CountingModel.yielded.clear()
    plugin = DurableAgents(CountingModel)
    async with make_worker(
        await Client.connect(client.service_client.config.target_host, plugins=[plugin]), queue := uuid.uuid4().hex
    ):
        handles = [await start(agents.AnswerWorkflow, task_queue=queue) for _ in range(others)]
        await arrived(standin, others)
        standin.play(raw(together, end, rest, last, event(finish("stop")), b"data: [DONE]\n\n"))
        handle = await start(agents.AnswerWorkflow, "counted", task_queue=queue)

        async def has_begun() -> bool | None:
            await asyncio.sleep(0)
            return bool(CountingModel.yielded) or None

        try:
            await until(has_begun)
            await watch(handle)
            await reads(handle, "".join(words))  # all of it, although the model is silent now
            read_together = list(CountingModel.yielded)
        finally:
            end.set()
        assert await result_of(handle) == "".join(words * 2)
        assert await asyncio.gather(*map(result_of, handles)) == ["the answer"] * others
    if others:
        assert len(read_together) < 10
    else:
        assert read_together == ["".join(words[:number]) for number in range(31)]
    assert len(standin.calls) == others + 1


# ── 4. Connections ───────────────────────────────────────────────────────────────────────────────────────

PLACE = {"name": "Tokyo", "country": "Japan", "latitude": 35.6895, "longitude": 139.6917, "population": 9733276}
CURRENT = {"temperature_2m": 18.4, "weather_code": 2, "wind_speed_10m": 12.1}
METEO = {"results": [PLACE], "current": CURRENT, "current_units": {"temperature_2m": "°C", "wind_speed_10m": "km/h"}}


class Connection:
    """Of the server's side."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.requests: list[str] = []
        """The head of each."""
        self.over = asyncio.Event()

    def send_head(self, *headers: str) -> None:
        head = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", *headers]
        self.writer.write("".join(f"{line}\r\n" for line in [*head, ""]).encode())

    def send(self, *stream: Part) -> None:
        self.send_data(*map(json.dumps, stream))

    def send_data(self, *lines: str) -> None:
        data = "".join(f"data: {line}\n\n" for line in lines).encode()
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_end(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    def hang_up(self, reset: bool) -> None:
        """Close the connection: with a FIN, or with an RST."""
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


type Manner = Callable[[Connection], None]
"""How a request is answered."""


class Wire:
    """A gateway, and Open-Meteo, on bare TCP. It keeps connections open, and shows them."""

    def __init__(self) -> None:
        self.url = ""
        self.connections: list[Connection] = []
        self.manners: deque[Manner] = deque()
        """For the next requests to the gateway. Others get a whole answer, with the number of requests in it."""

    @property
    def requests(self) -> list[int]:
        """How many came on each connection."""
        return [len(connection.requests) for connection in self.connections]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(writer)
        self.connections.append(connection)
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [line.split(":")[1] for line in head.lower().splitlines() if "content-length:" in line]
                await reader.readexactly(int(lengths[0]) if lengths else 0)
                connection.requests.append(head)
                if head.startswith("GET"):
                    body = json.dumps(METEO).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                else:
                    (self.manners.popleft() if self.manners else self.answer)(connection)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            connection.over.set()

    def answer(self, connection: Connection) -> None:
        connection.send_head("Set-Cookie: session=1; Path=/")
        connection.send(*text_parts(f"answer {sum(self.requests)}"), finish("stop"))
        connection.send_end()


@asynccontextmanager
async def wire_served() -> AsyncIterator[Wire]:
    wire = Wire()
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
        for connection in wire.connections:
            connection.writer.close()
            await connection.over.wait()


@pytest.fixture
async def wire(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    """The services, for this process."""
    async with wire_served() as wire:
        monkeypatch.setenv("AI_GATEWAY_API_KEY", "test-key-0123456789")
        monkeypatch.setenv("AI_GATEWAY_BASE_URL", f"{wire.url}/v3/ai")
        monkeypatch.setenv("OPEN_METEO_GEOCODING_URL", f"{wire.url}/v1/search")
        monkeypatch.setenv("OPEN_METEO_FORECAST_URL", f"{wire.url}/v1/forecast")
        yield wire


async def ask() -> str:
    """One model call, as an activity makes it."""
    async with asyncio.timeout(5):
        return (await GatewayModel("m").buffer(ai.make_messages(user="go"))).text


async def test_4_calls_in_a_row_share_a_connection(
    client: Client, queue: str, open_gateway: OpenGateway, ask_many: AskMany
) -> None:
    gateway = open_gateway(first=0, tokens=2, rate=100)
    for _ in range(25):
        await ask_many(1, queue)
    stats = await gateway.stats()
    assert (stats["calls"]["00000"], stats["tools"]) == ([25, 25], 25)
    assert stats["connections"] == 1


@pytest.mark.parametrize("at_the_request", [False, True])
@pytest.mark.parametrize("reset", [False, True])
async def test_4_a_kept_connection_that_is_closed_fails_no_call(wire: Wire, at_the_request: bool, reset: bool) -> None:
    assert await ask() == "answer 1"
    if at_the_request:
        wire.manners.append(lambda connection: connection.hang_up(reset))
    else:
        wire.connections[0].hang_up(reset)
        await wire.connections[0].over.wait()
    assert await ask() == f"answer {2 + at_the_request}"
    assert wire.requests == [1 + at_the_request, 1]


@pytest.mark.parametrize("reset", [False, True])
async def test_4_a_new_connection_that_breaks_is_a_failed_attempt(
    client: Client, queue: str, wire: Wire, reset: bool
) -> None:
    wire.manners.append(lambda connection: connection.hang_up(reset))
    handle = await client.start_workflow(agents.ImpatientWorkflow.run, "go", id=uuid.uuid4().hex, task_queue=queue)
    assert await result_of(handle) == "answer 2"
    assert await attempts_of(handle) == [2]
    assert wire.requests == [1, 1]


def half(connection: Connection) -> None:
    connection.send_head()
    connection.send(*text_parts("half")[:2])


def broken_off(connection: Connection) -> None:
    half(connection)
    connection.writer.close()


def with_an_error(connection: Connection) -> None:
    half(connection)
    connection.send({"type": "error", "error": "overloaded"}, *text_parts("late"), finish("stop"))
    connection.send_end()


def without_an_end(connection: Connection) -> None:
    connection.send_head()
    connection.send(*text_parts("whole"), finish("stop"))


def done_without_an_end(connection: Connection) -> None:
    without_an_end(connection)
    connection.send_data("[DONE]")


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("manner", [half, broken_off, with_an_error, without_an_end, done_without_an_end])
async def test_4_a_connection_in_which_something_may_be_left_serves_nobody(
    wire: Wire, manner: Manner, kept: bool
) -> None:
    before = int(kept)
    if kept:
        await ask()
    wire.manners.append(manner)
    if manner in (without_an_end, done_without_an_end):
        assert await ask() == "whole"
    elif manner is half:
        stream = GatewayModel("m").stream(ai.make_messages(user="go"))
        async for message in stream:
            if message.text:
                break
        await stream.aclose()
    else:
        with pytest.raises((GatewayFailure, httpx.TransportError)):
            await ask()
    async with asyncio.timeout(5):
        await wire.connections[0].over.wait()
    assert await ask() == f"answer {before + 2}"
    assert wire.requests == [before + 1, 1]


async def test_4_an_end_that_comes_too_late_harms_no_later_call(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("options.gateway.END_SECONDS", 0)
    assert [await ask() for _ in range(4)] == [f"answer {i}" for i in range(1, 5)]


async def test_4_connections_that_nobody_uses_are_closed_and_fail_no_call(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("options.http.KEEP_SECONDS", 0.03)
    for stage in range(25):  # of a call, in which another begins
        await asyncio.gather(ask(), ask())
        await asyncio.sleep(0.04)  # longer than connections are kept
        call = asyncio.create_task(ask())
        for _ in range(stage):
            await asyncio.sleep(0)
        await asyncio.gather(call, ask())
    assert len(wire.connections) > 10  # or none was closed
    async with asyncio.timeout(5):
        for connection in wire.connections[:-3]:
            await connection.over.wait()


async def test_4_a_cancelled_call_takes_its_connection_along(wire: Wire) -> None:
    came = asyncio.Event()

    def manner(connection: Connection) -> None:
        half(connection)
        came.set()

    wire.manners.append(manner)
    task = asyncio.create_task(ask())
    await came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await wire.connections[0].over.wait()
    assert await ask() == "answer 2"
    assert wire.requests == [1, 1]


async def test_4_a_cookie_is_not_for_the_next_caller(wire: Wire) -> None:
    for _ in range(3):
        await ask()
    [connection] = wire.connections
    assert [head for head in connection.requests if "cookie" in head.lower()] == []
    assert len(connection.requests) == 3


async def test_4_the_tools_share_connections_too(wire: Wire) -> None:
    for _ in range(3):
        assert (await tools.get_weather(city="Tokyo"))["temperature"] == "18.4 °C"
    assert wire.requests == [6]
    await asyncio.gather(*(tools.get_weather(city="Tokyo") for _ in range(4)))
    assert len(wire.connections) == 4
    assert sum(wire.requests) == 14


async def test_4_connections_with_and_without_a_proxy_are_kept_apart(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name of this machine for which proxies are used.
    monkeypatch.setenv("AI_GATEWAY_BASE_URL", f"{wire.url.replace('127.0.0.1', '127.1')}/v3/ai")
    for name in ("NO_PROXY", "no_proxy", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with wire_served() as one, wire_served() as other:
        for _ in range(2):
            for proxy in (None, one, other):
                if proxy is None:
                    monkeypatch.delenv("HTTP_PROXY", raising=False)
                else:
                    monkeypatch.setenv("HTTP_PROXY", proxy.url)
                await ask()
        assert [each.requests for each in (wire, one, other)] == [[2], [2], [2]]
        assert all(head.startswith("POST http://127.1") for head in one.connections[0].requests)


TWO_LOOPS = """
from app.command_line import load_when_used; load_when_used()
import asyncio, gc, sys
import vercel_ai_sdk as ai
from options.gateway import GatewayModel

async def ask():
    return [(await GatewayModel("m").buffer(ai.make_messages(user="go"))).text for _ in range(2)]

for _ in range(2):
    print(*asyncio.run(ask()), sep=", ", flush=True)
gc.collect()
sys.stdin.read()
"""


async def test_4_each_event_loop_closes_its_connections(wire: Wire) -> None:
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-W", "error::ResourceWarning", "-c", TWO_LOOPS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(BOUND):
        lines = [await process.stdout.readline() for _ in range(2)]
        for connection in wire.connections:
            await connection.over.wait()  # while the process lives
        assert await process.communicate() == (b"", b"")
    assert lines == [b"answer 1, answer 2\n", b"answer 3, answer 4\n"]
    assert wire.requests == [2, 2]


# ── 5. Retry-After ───────────────────────────────────────────────────────────────────────────────────────


async def test_5_agents_that_are_refused_together_do_not_come_back_together(
    queue: str, open_gateway: OpenGateway, ask_many: AskMany
) -> None:
    gateway = open_gateway(limit=20, first=0.1, tokens=3, rate=100)
    await ask_many(100, queue)
    stats = await gateway.stats()
    assert list(stats["calls"].values()) == [[1, 1]] * 100
    assert stats["refused"] < 300


# ── 6. Many tools at once ────────────────────────────────────────────────────────────────────────────────


def counts(number: int, *others: Part) -> Reply:
    """An answer with so many tool calls, each of them whole at once."""
    inputs = [json.dumps({"legs": [], "note": f"{i}"}) for i in range(number)]
    each = [called(f"c{i}", "count_legs", arguments) for i, arguments in enumerate(inputs)]
    return parts(*each, *others, finish("tool-calls", 10, 5))


def called(id: str, name: str, arguments: str) -> Part:
    return {"type": "tool-call", "toolCallId": id, "toolName": name, "input": arguments}


async def check_history(handle: WorkflowHandle[Any, Any]) -> None:
    """No workflow task failed, and it replays."""
    history = await handle.fetch_history()
    bad = {EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED, EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT}
    assert [event.event_type for event in history.events if event.event_type in bad] == []
    await Replayer(workflows=agents.WORKFLOWS, plugins=[DurableAgents()]).replay_workflow(history)


async def test_6_many_results_are_each_in_their_place(start: Start, standin: StandIn) -> None:
    answers = counts(120), text("done")
    standin.play(*answers, *answers)
    handle = await start(agents.ProgressWorkflow)
    durable: list[tuple[list[int], str]] = await result_of(handle)
    yielded = [message async for message in ai.run(agents.other_agent, GatewayModel("m"), "go")]
    assert [result["output"]["value"]["note"] for result in standin.calls[1].tool_results] == [*map(str, range(120))]
    assert standin.calls[1].prompt == standin.calls[3].prompt

    # Without Temporal there are also the messages so far, without usage, and the results come in another order.
    plain = [message for message in yielded if message.usage is not None]
    first, whole, answer = plain[0], plain[-2], plain[-1]
    assert [len(places) for places, _ in agents.progress_of(plain)] == [*range(121), 0]
    assert [len(places) for places, _ in durable] == [*range(121), 0]
    for places, digest in durable[:-1]:
        mixed = [whole.parts[i] if i in places else first.parts[i] for i in range(120)]
        assert agents.progress_of([whole.model_copy(update={"parts": mixed})]) == [(places, digest)]
    assert durable[-1:] == agents.progress_of([answer])
    await check_history(handle)


async def test_6_no_more_than_the_limit_are_in_flight(
    start: Start, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge.limits, "IN_FLIGHT", 20)
    standin.play(counts(100), text("done"))
    handle = await start(agents.AnswerWorkflow)
    assert await result_of(handle) == "done"
    in_flight, most = 0, 0
    for kind in await event_types(handle):
        in_flight += kind == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
        in_flight -= kind == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
        most = max(most, in_flight)
    assert most == 20
    assert [result["output"]["value"]["note"] for result in standin.calls[1].tool_results] == [*map(str, range(100))]
    await check_history(handle)


async def test_6_a_result_over_its_share_is_told_to_the_model(start: Start, standin: StandIn) -> None:
    standin.play(counts(99, called("big", "big_result", '{"size": 1500000}')), text("I see"))
    handle = await start(agents.AnswerWorkflow)
    assert await result_of(handle) == "I see"
    *others, big = standin.calls[1].tool_results
    assert [result["output"]["value"]["note"] for result in others] == [*map(str, range(99))]
    told = (
        "ToolError: big_result failed: the result of big_result has 1,500,013 bytes, over the 419,430 that are its "
        "share of a history, with so many calls at once"
    )
    assert big["output"] == {"type": "error-text", "value": told}


async def test_6_a_full_history_ends_the_run_with_one_line(
    start: Start, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge.limits, "EVENTS", 30)
    standin.play(*(counts(3) for _ in range(10)))
    handle = await start(agents.AnswerWorkflow)
    with pytest.raises(WorkflowFailureError) as raised:
        await result_of(handle)
    failure = raised.value.cause
    assert isinstance(failure, ApplicationError)
    assert (failure.type, failure.non_retryable) == ("HistoryFull", True)
    assert failure.message.startswith("the calls of one turn do not fit into a history: it has ")
    assert "\n" not in failure.message
    assert 1 < len(standin.calls) < 10


# ── 7. Private names ─────────────────────────────────────────────────────────────────────────────────────


class Between(Interceptor):
    """Stands between an activity and its worker, as tracing does."""

    @override
    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Inbound(super().intercept_activity(next))


class _Inbound(ActivityInboundInterceptor):
    @override
    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))


class _Outbound(ActivityOutboundInterceptor):
    pass


@pytest.mark.parametrize("interceptors", [[], [Between()], [Between(), Between()]])
async def test_7_temporal_still_has_the_names_that_heartbeats_go_by(
    client: Client, monkeypatch: pytest.MonkeyPatch, interceptors: list[Interceptor]
) -> None:
    problems: list[str] = []

    async def look() -> None:
        context = getattr(activity, "_Context", None)
        if context is None:
            problems.append("temporalio.activity has no _Context any more")
            return
        outbound = getattr(context.current().heartbeat, "__self__", None)
        while isinstance(outbound, _Outbound):
            outbound = outbound.next
        worker = getattr(outbound, "_worker", None)
        if worker is None:
            problems.append("the heartbeat of an activity's context does not lead to a `_worker` any more")
        elif not callable(getattr(worker._bridge_worker(), "record_activity_heartbeat", None)):
            problems.append("Core's worker has no record_activity_heartbeat any more")
        elif bridge.heartbeats._sender() != worker._bridge_worker().record_activity_heartbeat:
            problems.append("heartbeats do not go to Core's worker")

    monkeypatch.setitem(tool_functions, "lost", look)
    async with make_worker(client, queue := uuid.uuid4().hex, interceptors=interceptors):
        await client.execute_workflow(agents.LostToolWorkflow.run, id=queue, task_queue=queue)
    assert problems == []


async def test_7_an_activity_runs_in_temporals_environment_for_tests() -> None:
    call = ToolCall(tool="count_legs", arguments={"legs": [], "note": "alone"})
    reply = await ActivityEnvironment().run(tool_call_activity, call)
    assert reply.result == {"legs": 0, "ends": [], "note": "alone"}
