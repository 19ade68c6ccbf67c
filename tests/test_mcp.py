"""Tools of MCP servers: real servers over both transports, killed and started again, and what the model is told."""

import asyncio
import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any, override

import agents
import anyio
import httpx
import mcp_agents
import pytest
import vercel_ai_sdk as ai
from conftest import ROOT, StartServer
from mcp import ClientSession
from mcp_agents import McpRequest
from processes import end, first_line, kill
from standin import StandIn, held, text
from standin import tools as calls
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Replayer, Worker
from vercel_ai_sdk.core.tools import _tool_registry

import options.mcp
from app import demo
from durable import HEARTBEAT_TIMEOUT
from options.approvals import APPROVAL, Approval, open_questions
from options.gateway import GatewayModel
from options.mcp import HttpServer, McpServers, StdioServer, mcp_tools
from plugin import DurableAgents

SCRIPT = str(ROOT / "tests" / "mcp_server.py")
TRANSPORTS = ["http", "stdio"]
both_transports = pytest.mark.parametrize("name", TRANSPORTS)

type Call = tuple[str, dict[str, Any]]
type Handle = WorkflowHandle[Any, Any]
type Serve = Callable[..., Awaitable[Start]]
type Start = Callable[..., Awaitable[Handle]]


class Reports:
    """What the tools of the servers say that they do, and the way to let those go on that wait."""

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        """For the servers."""
        self.lines: list[str] = []
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._arrived = asyncio.Condition()

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            async with self._arrived:
                self.lines.append(line.decode().strip())
                self._writers[self.lines[-1].split()[1]] = writer
                self._arrived.notify_all()

    async def wait_for(self, words: str, times: int = 1) -> str:
        """Wait until this was said so often, and return the latest line."""

        def said() -> list[str]:
            return [line for line in self.lines if words in line]

        async with asyncio.timeout(60), self._arrived:
            await self._arrived.wait_for(lambda: len(said()) >= times)
        return said()[-1]

    def release(self, name: str) -> None:
        self._writers[name].write(b"go on\n")


class HttpProcess:
    """An MCP server in a process of its own, on a port that stays the same. It is started when its URL is wanted."""

    def __init__(self, reports: Reports) -> None:
        self.reports = reports
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        if self._process is None:
            self.start()
        return f"http://127.0.0.1:{self._port}/mcp"

    def start(self, **environment: str) -> None:
        env = {**os.environ, **self.reports.environment, **environment}
        command = [sys.executable, SCRIPT, str(self._port)]
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
        self._port = int(first_line(self._process))

    def kill(self) -> None:
        if self._process is not None:
            kill(self._process)

    def restart(self, **environment: str) -> None:
        self.kill()
        self.start(**environment)


@pytest.fixture
async def reports() -> AsyncIterator[Reports]:
    reports = Reports()
    server = await asyncio.start_server(reports.receive, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    reports.environment = {"REPORTS": f"{host}:{port}"}
    yield reports
    server.close()


@pytest.fixture
def http(reports: Reports) -> Iterator[HttpProcess]:
    process = HttpProcess(reports)
    yield process
    process.kill()


@pytest.fixture
def servers(http: HttpProcess, reports: Reports, request: pytest.FixtureRequest) -> McpServers:
    case = getattr(request.node, "callspec", None)
    unused = case is not None and case.params.get("name") == "stdio"
    return McpServers(
        {
            "http": HttpServer("http://127.0.0.1:9/mcp" if unused else http.url),
            "stdio": StdioServer(sys.executable, [SCRIPT], env=reports.environment),
        }
    )


@pytest.fixture
async def serve(client: Client, standin: StandIn) -> AsyncIterator[Serve]:
    """Have a worker with these servers. Returns the function that starts workflows on it."""
    async with AsyncExitStack() as workers:

        async def serve(servers: McpServers, **options: Any) -> Start:
            queue = uuid.uuid4().hex
            worker = Worker(
                client,
                task_queue=queue,
                workflows=[*mcp_agents.WORKFLOWS, *agents.WORKFLOWS],
                plugins=[servers],
                max_heartbeat_throttle_interval=HEARTBEAT_TIMEOUT / 50,  # it is how a worker learns of a cancellation
                **options,
            )
            await workers.enter_async_context(worker)
            return functools.partial(start_workflow, client, queue)

        yield serve


@pytest.fixture
async def start(serve: Serve, servers: McpServers) -> Start:
    """Start a workflow on a worker that has both servers."""
    return await serve(servers)


async def start_workflow(
    client: Client, queue: str, request: object, workflow: type[Any] = mcp_agents.McpWorkflow
) -> Handle:
    return await client.start_workflow(workflow.run, request, id=uuid.uuid4().hex, task_queue=queue)


async def result_of(handle: Handle) -> Any:
    async with asyncio.timeout(60):
        return await handle.result()


async def failure_of(handle: Handle) -> str:
    """The line that a run fails with."""
    with pytest.raises(WorkflowFailureError) as error:
        await result_of(handle)
    assert isinstance(error.value.cause, ApplicationError)
    return error.value.cause.message


def play(standin: StandIn, *rounds: list[Call]) -> None:
    """Have the model call these tools, in several rounds, and then answer."""
    ids = map(str, itertools.count())
    standin.play(*(calls(*((next(ids), *call) for call in round)) for round in rounds), text("done"))


def told(standin: StandIn) -> list[Any]:
    """What the model was told of its tool calls, in its latest request."""
    return [result["output"]["value"] for result in standin.calls[-1].tool_results]


def offered(standin: StandIn) -> list[list[str]]:
    """The tools that the model was offered, in each of its requests."""
    return [[tool["name"] for tool in call.body["tools"]] for call in standin.calls]


async def attempts(handle: Handle, activity: str = "mcp_call_activity") -> list[int]:
    """How many attempts each activity of a kind took, in the order of their ends."""
    events = [event async for event in handle.fetch_history_events()]
    scheduled = {event.event_id: event.activity_task_scheduled_event_attributes.activity_type.name for event in events}
    started = [event.activity_task_started_event_attributes for event in events]
    return [event.attempt for event in started if scheduled.get(event.scheduled_event_id) == activity]


async def until_it_failed(handle: Handle) -> str:
    """Wait until an attempt of an activity has failed and another one is due. Returns why."""
    async with asyncio.timeout(60):
        while True:
            for pending in (await handle.describe()).raw_description.pending_activities:
                if pending.HasField("last_failure"):
                    return pending.last_failure.message


def dumped(messages: list[ai.Message]) -> list[dict[str, Any]]:
    return [message.model_dump(exclude={"id"}) for message in messages]


async def plainly(servers: McpServers, server: str) -> list[ai.Message]:
    """The messages of the same agent without Temporal."""
    async with asyncio.timeout(60), servers.connected():
        return await agents.transcript_of(ai.run(mcp_agents.mcp_agent, GatewayModel("test/model"), "go", server))


# ── The loop ─────────────────────────────────────────────────────────────────────────────────────────────

ADD: Call = ("add", {"a": 1, "b": 2})
GREET: Call = ("greet", {"name": "Ada"})


@both_transports
async def test_the_same_loop_gives_the_same_messages_with_and_without_temporal(
    start: Start, servers: McpServers, standin: StandIn, name: str
) -> None:
    rounds: tuple[list[Call], ...] = (
        [ADD, GREET, ("fail", {"reason": "why"})],
        [("draw", {}), ("look_up", {}), ("add", {"a": "q"})],
    )
    play(standin, *rounds)
    durable = await result_of(await start(McpRequest(server=name)))
    play(standin, *rounds)
    plain = await plainly(servers, name)
    assert dumped(durable) == dumped(plain)
    assert told(standin)[:3] == [
        {"total": 3, "version": "1"},
        {"result": "hello Ada"},
        "ToolError: fail failed: Error executing tool fail: why",
    ]


async def test_tools_and_results_are_those_of_the_sdk(
    http: HttpProcess, servers: McpServers, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK puts its tools into the registry for good. One of them has the name of a wrapped tool.
    monkeypatch.setitem(_tool_registry, "big_result", _tool_registry["big_result"])
    rounds: list[Call] = [
        ADD,
        GREET,
        ("say", {"text": "words"}),
        ("say", {"text": '{"a": [1]}'}),
        ("say", {"text": "{no JSON"}),
    ]

    async def agent(llm: ai.LanguageModel) -> None:
        await ai.stream_loop(llm, ai.make_messages(user="go"), await ai.mcp.get_http_tools(http.url))

    play(standin, rounds, [("say_nothing", {})])
    theirs = await agents.transcript_of(ai.run(agent, GatewayModel("test/model")))
    play(standin, rounds, [("say_nothing", {})])
    assert dumped(await plainly(servers, "http")) == dumped(theirs)
    assert standin.calls[0].body["tools"] == standin.calls[-1].body["tools"]


PICTURE = {"type": "image", "data": "iVBORwD/", "mimeType": "image/png"}
RESULTS: dict[str, tuple[dict[str, Any], Any]] = {
    "say": ({"text": "[NaN]"}, "[NaN]"),
    "say_twice": ({"text": "a"}, [{"type": "text", "text": "a"}] * 2),
    "draw": ({}, [{"type": "text", "text": "here it is"}, PICTURE]),
    "measure": ({}, {"structuredContent": {"size": 3}, "content": [{**PICTURE, "data": "aGVsbG8="}]}),
    "look_up": (
        {},
        [
            {
                "type": "resource",
                "resource": {"uri": "file:///notes.txt", "mimeType": "text/plain", "text": "a note"},
            },
            {"type": "resource_link", "uri": "file:///notes.txt", "name": "notes"},
        ],
    ),
}


@both_transports
async def test_a_result_of_any_kind_is_told_to_the_model(start: Start, standin: StandIn, name: str) -> None:
    play(standin, [(tool, arguments) for tool, (arguments, _) in RESULTS.items()])
    await result_of(await start(McpRequest(server=name)))
    assert told(standin) == [result for _, result in RESULTS.values()]


async def test_a_result_over_the_limit_is_told_in_one_line(start: Start, standin: StandIn) -> None:
    play(standin, [("big_result", {"size": 3_000_000})])
    await result_of(await start(McpRequest(server="http")))
    [line] = told(standin)
    assert re.fullmatch(
        r"ToolError: big_result failed: the result of big_result has 3,000,\d+ bytes, over the .*", line
    )


async def test_a_list_in_pages_is_read_to_its_end(serve: Serve, servers: McpServers, http: HttpProcess) -> None:
    whole = await tool_names(servers)
    http.restart(PAGES="1")
    assert await tool_names(servers) == whole
    assert len(whole) > 10


async def tool_names(servers: McpServers) -> list[str]:
    async with servers.connected():
        return [tool.name for tool in await servers.list_tools("http")]


async def test_a_run_asks_each_server_once_and_writes_no_timers(start: Start, standin: StandIn) -> None:
    standin.play(*[text("done")] * 7)
    handle = await start(TRANSPORTS, mcp_agents.SeveralLoopsWorkflow)
    assert await result_of(handle) == ["done"] * 7
    assert await attempts(handle, "mcp_list_activity") == [1, 1]
    events = [event.event_type async for event in handle.fetch_history_events()]
    assert EventType.EVENT_TYPE_TIMER_STARTED not in events


# ── Other tools by then, and other tools of the same name ────────────────────────────────────────────────


@pytest.mark.parametrize("cached", [0, 100])
async def test_a_run_keeps_its_tools_whatever_the_server_offers_by_then(
    serve: Serve,
    servers: McpServers,
    http: HttpProcess,
    standin: StandIn,
    cached: int,
) -> None:
    start = await serve(servers, max_cached_workflows=cached)
    release = threading.Event()
    standin.play(
        calls(("1", *ADD)),
        held(release, calls(("2", *ADD), ("3", *GREET), ("4", "part", {"name": "Ada"}))),
        text("done"),
    )
    handle = await start(McpRequest(server="http"))
    await asyncio.to_thread(standin.wait_for, calls=2)
    http.restart(VERSION="2")
    release.set()
    await result_of(handle)
    unknown, lost = told(standin)[2:]
    assert told(standin)[:2] == [{"total": 3, "version": "1"}, {"total": 3, "version": "2"}]
    assert unknown == "ToolError: greet failed: Unknown tool: greet"
    assert lost.startswith("ToolError: there is no tool 'part'; the tools are: add, ")
    assert await attempts(handle) == [1, 1, 1]
    first, *others = offered(standin)
    assert "greet" in first
    assert others == [first, first]

    play(standin, [("part", {"name": "Ada"})])
    await result_of(await start(McpRequest(server="http")))
    assert told(standin) == [{"result": "good-bye Ada"}]

    http.kill()
    replayer = Replayer(workflows=mcp_agents.WORKFLOWS, plugins=[DurableAgents()])
    await replayer.replay_workflow(await handle.fetch_history())


async def test_a_tool_that_vanished_is_told_to_the_model(start: Start, standin: StandIn) -> None:
    play(standin, [("forget", {"tool": "greet"})], [GREET])
    handle = await start(McpRequest(server="stdio"))
    await result_of(handle)
    assert told(standin)[1] == "ToolError: greet failed: Unknown tool: greet"
    assert await attempts(handle) == [1, 1]


async def test_runs_do_not_see_the_tools_of_others(
    serve: Serve, servers: McpServers, reports: Reports, standin: StandIn
) -> None:
    # `big_result` is a wrapped tool of this process, too. Each of two servers has another version of `add`.
    big, add = ("1", "big_result", {"size": 3}), ("2", *ADD)
    env = {**reports.environment, "VERSION": "2"}
    newer = McpServers({"http": StdioServer(sys.executable, [SCRIPT], env=env)})
    releases = [threading.Event() for _ in range(3)]
    results: list[Any] = []
    starts = [
        ((await serve(servers)), McpRequest(server="http"), mcp_agents.McpWorkflow, calls(big, add)),
        ((await serve(newer)), McpRequest(server="http"), mcp_agents.McpWorkflow, calls(big, add)),
        ((await serve(servers)), "go", agents.OtherWorkflow, calls(big)),
    ]
    handles = []
    for (start, request, workflow, reply), release in zip(starts, releases, strict=True):
        standin.play(held(release, reply))
        handles.append(await start(request, workflow))
        await asyncio.to_thread(standin.wait_for, calls=len(handles))
    for handle, release in zip(handles, releases, strict=True):
        standin.play(text("done"))
        release.set()
        await result_of(handle)
        results.append(told(standin))
    assert results == [
        ["yyy", {"total": 3, "version": "1"}],
        ["yyy", {"total": 3, "version": "2"}],
        ["xxx"],
    ]


@pytest.mark.parametrize(
    ("agent", "line"),
    [
        (
            "clashing",
            "the MCP server 'http' and the MCP server 'stdio' both have a tool 'add': give one of them a prefix",
        ),
        ("doubled", "the model is offered two tools called 'big_result'"),
        ("mistyped", "there are options for 'ad', but the MCP server 'http' has no such tool"),
    ],
)
async def test_a_mistake_in_the_loop_ends_the_run_with_one_line(start: Start, agent: str, line: str) -> None:
    assert await failure_of(await start(McpRequest(server="http", agent=agent))) == line


async def test_a_prefix_tells_the_tools_of_two_servers_apart(start: Start, standin: StandIn, reports: Reports) -> None:
    play(standin, [ADD, ("local_add", {"a": 3, "b": 4})])
    await result_of(await start(McpRequest(server="", agent="prefixed")))
    assert [result["total"] for result in told(standin)] == [3, 7]
    processes = {line.split()[-1] for line in reports.lines if line.startswith("add")}
    assert len(processes) == 2
    assert {"add", "local_add"} <= set(offered(standin)[0])


async def test_a_run_that_continues_as_new_asks_again(
    start_server: StartServer, servers: McpServers, http: HttpProcess, standin: StandIn
) -> None:
    _, address = start_server("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=15")
    client = await Client.connect(address, plugins=[DurableAgents(GatewayModel), servers])
    release = threading.Event()
    standin.play(
        calls(("1", *ADD)), held(release, calls(("2", *ADD))), calls(("3", "part", {"name": "Ada"})), text("done")
    )
    async with Worker(client, task_queue="mcp", workflows=mcp_agents.WORKFLOWS):
        handle = await start_workflow(client, "mcp", McpRequest(server="http"), mcp_agents.LongMcpWorkflow)
        await asyncio.to_thread(standin.wait_for, calls=2)
        http.restart(VERSION="2")
        release.set()
        assert await result_of(handle) == "done"
    assert told(standin) == [
        {"total": 3, "version": "1"},
        {"total": 3, "version": "2"},
        {"result": "good-bye Ada"},
    ]


# ── Approvals and options ────────────────────────────────────────────────────────────────────────────────


async def until_asked(handle: Handle) -> tuple[str, str]:
    """The question that a run asks, and the call that it is about."""
    async with asyncio.timeout(60):
        async for _ in handle.fetch_history_events(wait_new_event=True):
            for call, question in open_questions(await (await handle.describe()).memo()).items():
                return question, call
    raise AssertionError("the run is over")


async def test_a_person_is_asked_before_a_tool_of_a_server(start: Start, standin: StandIn, reports: Reports) -> None:
    for approved, answer in [
        (True, {"total": 3, "version": "1"}),
        (False, "ToolError: a person did not allow this call of add: no reason given"),
    ]:
        play(standin, [ADD])
        handle = await start(McpRequest(server="stdio", agent="quick"))
        question, call = await until_asked(handle)
        assert question == "add(a=1, b=2)"
        await handle.execute_update(APPROVAL, Approval(call=call, approved=approved))
        await result_of(handle)
        assert told(standin) == [answer]
    assert len(reports.lines) == 1


async def test_approvals_may_be_enabled_for_single_runs(start: Start, standin: StandIn) -> None:
    play(standin, [GREET])
    await result_of(await start(McpRequest(server="stdio", agent="quick")))
    play(standin, [GREET])
    handle = await start(McpRequest(server="stdio", agent="quick", approve=True))
    question, call = await until_asked(handle)
    assert question == 'greet(name="Ada")'
    await handle.execute_update(APPROVAL, Approval(call=call, approved=True))
    await result_of(handle)


# ── Failures ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_error_result_is_told_and_not_tried_again(start: Start, standin: StandIn, reports: Reports) -> None:
    play(standin, [("fail", {"reason": "it is shut"})])
    await result_of(await start(McpRequest(server="stdio")))
    assert told(standin) == ["ToolError: fail failed: Error executing tool fail: it is shut"]
    assert reports.lines == ["fail it is shut"]


async def test_a_run_waits_for_a_server_that_is_down(start: Start, standin: StandIn, http: HttpProcess) -> None:
    http.kill()
    play(standin, [ADD])
    handle = await start(McpRequest(server="http"))
    reason = await until_it_failed(handle)
    assert reason.startswith("the MCP server 'http' cannot be reached (ConnectError: ")
    http.start()
    await result_of(handle)
    assert told(standin) == [{"total": 3, "version": "1"}]


async def test_a_call_of_a_server_that_stays_down_is_told(start: Start, standin: StandIn, http: HttpProcess) -> None:
    release = threading.Event()
    standin.play(held(release, calls(("1", *GREET))), text("done"))
    handle = await start(McpRequest(server="http", agent="quick"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    http.kill()
    release.set()
    await result_of(handle)
    [line] = told(standin)
    assert line.startswith("ToolError: greet failed: the MCP server 'http' cannot be reached (ConnectError: ")
    assert await attempts(handle) == [2]


@pytest.mark.parametrize("environment", [{}, {"JSON": "1"}, {"EVENTS": "1"}], ids=["events", "JSON", "events-with-ids"])
async def test_an_http_server_that_is_killed_in_a_call_is_asked_again(
    start: Start, standin: StandIn, http: HttpProcess, environment: dict[str, str]
) -> None:
    http.restart(**environment)
    play(standin, [("hold", {"name": "it"})])
    handle = await start(McpRequest(server="http"))
    await http.reports.wait_for("begun it")
    http.restart(**environment)
    await http.reports.wait_for("begun it", times=2)
    http.reports.release("it")
    await result_of(handle)
    assert told(standin) == [{"result": "it is done"}]
    assert await attempts(handle) == [2]


async def test_a_stdio_server_that_is_killed_in_a_call_is_started_again(
    start: Start, standin: StandIn, reports: Reports
) -> None:
    play(standin, [("hold", {"name": "it"})])
    handle = await start(McpRequest(server="stdio"))
    kill_process_of(await reports.wait_for("begun it"))
    await reports.wait_for("begun it", times=2)
    reports.release("it")
    await result_of(handle)
    assert told(standin) == [{"result": "it is done"}]
    assert await attempts(handle) == [2]


def kill_process_of(line: str) -> None:
    """Kill a server, and wait until it is dead."""
    process = int(line.rsplit(maxsplit=1)[-1])
    os.kill(process, signal.SIGKILL)
    with suppress(ChildProcessError):  # its session was faster to find out
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


@both_transports
async def test_a_call_that_may_be_made_once_is_told_as_lost(
    start: Start, standin: StandIn, reports: Reports, name: str
) -> None:
    play(standin, [("hold", {"name": "it"})])
    handle = await start(McpRequest(server=name, agent="quick"))
    kill_process_of(await reports.wait_for("begun it"))
    await result_of(handle)
    assert told(standin) == [
        {
            "http": "ToolError: hold failed: the connection to the MCP server 'http' broke off before the answer",
            "stdio": "ToolError: hold failed: the MCP server 'stdio' ended before it answered",
        }[name]
    ]


@both_transports
async def test_a_server_that_is_another_process_by_the_next_call_costs_no_attempt(
    start: Start, standin: StandIn, http: HttpProcess, name: str
) -> None:
    release = threading.Event()
    standin.play(calls(("1", *ADD)), held(release, calls(("2", *ADD), ("3", *GREET), ("4", *ADD))), text("done"))
    handle = await start(McpRequest(server=name))
    line = await http.reports.wait_for("add")
    await asyncio.to_thread(standin.wait_for, calls=2)
    if name == "http":
        http.restart()
    else:
        kill_process_of(line)
    release.set()
    await result_of(handle)
    assert len(told(standin)) == 4
    assert await attempts(handle) == [1, 1, 1, 1]
    assert len({line.split()[-1] for line in http.reports.lines if line.startswith("add")}) == 2


async def test_calls_share_a_session_and_one_that_is_refused_does_not_disturb_the_others(
    start: Start, standin: StandIn, reports: Reports
) -> None:
    holds: list[Call] = [("hold", {"name": name}) for name in ("this", "that")]
    play(standin, [*holds, ("busy", {"reason": "none"})])
    handle = await start(McpRequest(server="http"))
    for name in ("this", "that"):
        await reports.wait_for(f"begun {name}")
    async with asyncio.timeout(60):
        while (await attempts(handle)) != [2]:  # the one that was refused at first
            pass
    for name in ("this", "that"):
        reports.release(name)
    await result_of(handle)
    assert told(standin) == [{"result": "this is done"}, {"result": "that is done"}, {"result": "none"}]
    assert sorted(await attempts(handle)) == [1, 1, 2]
    assert [line for line in reports.lines if line.startswith("session")] == ["session opened"]


@both_transports
async def test_a_session_ends_with_the_worker(
    client: Client, servers: McpServers, standin: StandIn, reports: Reports, name: str
) -> None:
    play(standin, [ADD])
    async with Worker(client, task_queue=name, workflows=mcp_agents.WORKFLOWS, plugins=[servers]):
        await result_of(await start_workflow(client, name, McpRequest(server=name)))
    if name == "http":
        await reports.wait_for("session closed")
    else:
        with pytest.raises(ProcessLookupError):
            kill_process_of(await reports.wait_for("add"))


@both_transports
@pytest.mark.parametrize("whole_run", [True, False])
async def test_a_call_that_is_cancelled_is_cancelled_on_the_server(
    start: Start, standin: StandIn, reports: Reports, name: str, whole_run: bool
) -> None:
    standin.play(calls(("1", "hold", {"name": "it"}), ("2", *ADD)))
    handle = await start(name, mcp_agents.HastyMcpWorkflow)
    process = (await reports.wait_for("begun it")).split()[-1]
    if whole_run:
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as error:
            await result_of(handle)
        assert isinstance(error.value.cause, CancelledError)
        await reports.wait_for("cancelled it")
        play(standin, [ADD])
        await result_of(await start(McpRequest(server=name)))
    else:
        await handle.signal("enough")
        messages = await result_of(handle)
        assert [call.status for call in messages[-1].tool_calls] == ["pending", "result"]
        await reports.wait_for("cancelled it")
    # The session goes on.
    assert (await reports.wait_for("add")).split()[-1] == process
    assert [line for line in reports.lines if line.startswith("session")] == ["session opened"] * (name == "http")


@both_transports
async def test_a_call_that_takes_too_long_is_cancelled_on_the_server(
    start: Start, standin: StandIn, reports: Reports, name: str
) -> None:
    play(standin, [("hold", {"name": "it"})])
    await result_of(await start(McpRequest(server=name, agent="hurried")))
    [line] = told(standin)
    assert line.startswith("ToolError: hold failed: it was not finished in time (start_to_close)")
    await reports.wait_for("cancelled it")


# ── Mistakes on the worker ───────────────────────────────────────────────────────────────────────────────


async def page(request: Request) -> Response:
    return PlainTextResponse("Welcome!")


async def no_answer(request: Request) -> Response:
    return JSONResponse({"welcome": True})


async def elsewhere(request: Request) -> Response:
    return RedirectResponse("https://example.invalid/mcp")


class Auth(httpx.Auth):
    """Authorizes requests with the next token."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)

    @override
    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if not self.tokens:
            raise ValueError("there is no token")
        request.headers["Authorization"] = self.tokens[0]
        response = yield request
        if response.status_code == 401:
            del self.tokens[0]
            request.headers["Authorization"] = self.tokens[0]
            yield request


MISTAKES = {
    "nowhere": "the MCP server 'it' is not at its URL (HTTP 404): check the URL on the worker",
    "page": "the MCP server 'it' is no MCP server: it answers with text/plain",
    "no-answer": "the MCP server 'it' answers with JSON that is no answer of MCP",
    "elsewhere": "the MCP server 'it' redirects to another address: name that on the worker",
    "token": "the MCP server 'it' refuses the credentials of its worker (HTTP 401): check the headers there",
    "auth": "the MCP server 'it' cannot be asked: there is no token",
    "command": "the MCP server 'it' cannot be started (ENOENT): check its command and its folder on the worker",
    "end": "the MCP server 'it' ended before it was ready: see the standard error of the worker for what it wrote",
    "name": "this worker has no MCP server 'it'; it has: another",
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_on_the_worker_ends_the_run_with_one_line(
    serve: Serve, http: HttpProcess, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setattr(options.mcp, "DOUBTFUL_ATTEMPTS", 2)
    answers = {"/page": page, "/no-answer": no_answer, "/elsewhere": elsewhere}
    routes = [Route(path, answer, methods=["POST"]) for path, answer in answers.items()]
    with demo.serve(routes) as url:
        server: HttpServer | StdioServer = HttpServer(f"{url}/{mistake}")
        if mistake == "token":
            http.restart(TOKEN="Bearer right")
            server = HttpServer(http.url, headers={"Authorization": "Bearer wrong"})
        elif mistake == "auth":
            server = HttpServer(http.url, auth=Auth())
        elif mistake == "command":
            server = StdioServer("no-such-command")
        elif mistake == "end":
            server = StdioServer(sys.executable, ["-c", ""])
        servers = McpServers({"another" if mistake == "name" else "it": server})
        handle = await (await serve(servers))(McpRequest(server="it"))
        assert await failure_of(handle) == f"the list of tools of it failed: {MISTAKES[mistake]}"
    assert await attempts(handle, "mcp_list_activity") == [2 if mistake in ("end", "name") else 1]


async def test_a_token_may_run_out(http: HttpProcess) -> None:
    servers = McpServers({"http": HttpServer(http.url, auth=Auth("Bearer old", "Bearer new"))})
    http.restart(TOKEN="Bearer new")
    async with servers.connected():
        assert await servers.call_tool("http", *GREET) == {"result": "hello Ada"}


@pytest.mark.filterwarnings("ignore:The same plugin type")
async def test_the_plugin_may_be_on_the_client_and_on_the_worker(client: Client, servers: McpServers) -> None:
    other = Client(client.service_client, plugins=[DurableAgents(), servers])
    async with Worker(other, task_queue=uuid.uuid4().hex, workflows=mcp_agents.WORKFLOWS, plugins=[servers]):
        pass


def test_a_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"^the URL of the MCP server 'it' is no http:// or https:// URL: ftp://a$"):
        McpServers({"it": HttpServer("ftp://a")})


async def test_without_temporal_it_says_what_is_missing(servers: McpServers) -> None:
    with pytest.raises(RuntimeError, match=r"run the loop inside of `async with servers\.connected\(\)`"):
        await mcp_tools("http")
    async with servers.connected():
        with pytest.raises(RuntimeError, match=r"ask for them inside of ai.run\(\), or in a workflow"):
            await mcp_tools("http")


def test_the_private_name_of_mcp_is_still_there() -> None:
    """Fails when an update of `mcp` moves what options/mcp_sessions.py has to touch (`private:` there)."""
    send, receive = anyio.create_memory_object_stream[Any]()
    assert ClientSession(receive, send)._request_id == 0


# ── Secrets ──────────────────────────────────────────────────────────────────────────────────────────────

SECRETS = {"header": "Bearer the-token-0123", "url": "the-key-4567", "variable": "the-password-89"}


@both_transports
async def test_no_secret_is_in_a_history(
    serve: Serve, http: HttpProcess, reports: Reports, standin: StandIn, name: str
) -> None:
    http.restart(TOKEN=SECRETS["header"])
    env = {**reports.environment, "DB_PASSWORD": SECRETS["variable"]}
    servers = McpServers(
        {
            "http": HttpServer(f"{http.url}?api_key={SECRETS['url']}", headers={"Authorization": SECRETS["header"]}),
            "stdio": StdioServer(sys.executable, [SCRIPT], env=env),
        }
    )
    release = threading.Event()
    whispers: list[Call] = [("whisper", {"loudly": loudly}) for loudly in (False, True)]
    standin.play(
        calls(*((str(i), *call) for i, call in enumerate(whispers))), held(release, calls(("3", *ADD))), text("done")
    )
    handle = await (await serve(servers))(McpRequest(server=name, agent="quick"))
    await asyncio.to_thread(standin.wait_for, calls=2)
    http.restart(TOKEN="Bearer another")
    release.set()
    _, call = await until_asked(handle)
    await handle.execute_update(APPROVAL, Approval(call=call, approved=True))
    await result_of(handle)
    quiet, loud, refused = told(standin)
    for line in (quiet, loud):
        assert ("$http.Authorization" in line, "$http.api_key" in line) == (name == "http", name == "http")
        assert ("$stdio.DB_PASSWORD" in line) == (name == "stdio")
    assert (refused == f"ToolError: add failed: {MISTAKES['token']}".replace("'it'", "'http'")) == (name == "http")
    history = b"".join([event.SerializeToString() async for event in handle.fetch_history_events()])
    assert b"whisper" in history
    for secret in (*SECRETS.values(), "the-token-0123", SCRIPT):
        assert secret.encode() not in history


# ── Killed workers ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_of_a_killed_worker_is_made_by_another(
    client: Client, standin: StandIn, http: HttpProcess, reports: Reports
) -> None:
    queue = uuid.uuid4().hex
    command = [
        sys.executable,
        str(ROOT / "tests" / "mcp_worker.py"),
        client.service_client.config.target_host,
        queue,
        http.url,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE)

    play(standin, [ADD], [("hold", {"name": "it"})])
    handle = await start_workflow(client, queue, McpRequest(server="http"))
    workers = [start()]
    try:
        await reports.wait_for("begun it")
        workers[0].kill()
        workers.append(start())
        await reports.wait_for("begun it", times=2)
        reports.release("it")
        await result_of(handle)
    finally:
        for worker in workers:
            end(worker)
    assert told(standin) == [{"total": 3, "version": "1"}, {"result": "it is done"}]
    assert len([line for line in reports.lines if line.startswith("add")]) == 1
    assert await attempts(handle, "mcp_list_activity") == [1]
