"""Telemetry: a durable run tells the SDK's handlers what the same run tells without Temporal, once."""

import asyncio
import gc
import json
import logging
import os
import re
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple

import agents
import pytest
import traced
import vercel_ai_sdk as ai
from conftest import ROOT, Forgetful, RunMain, StartAgent
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from recorder import FAULTS, LINGERS, RECORDER, Recorder, Told
from spans import exported_spans
from standin import Call, StandIn, hang, status, text
from standin import tools as calls
from starlette.responses import Response
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.contrib.opentelemetry import OpenTelemetryPlugin
from temporalio.worker import Replayer, Worker
from vercel_ai_sdk.core import telemetry
from vercel_ai_sdk.core.telemetry import TelemetryEvent, ToolCallFinishEvent
from vercel_ai_sdk.otel import OtelHandler

from app import demo
from bridge.telemetry import _Handlers, _warn
from bridge.transcript import TRANSCRIPT_QUERY
from options.gateway import GatewayModel
from plugin import DurableAgents
from workflow import AgentWorkflow, agent
from workflow_types import AgentRequest

COMPARE = "Compare the weather and the population of New York and Los Angeles"
TOKYO = "Weather in Tokyo"

type Handle = WorkflowHandle[Any, Any]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Enabled in this process, outside of workflows."""
    recorder = Recorder()
    ai.telemetry.enable(recorder)
    yield recorder
    ai.telemetry.disable()


@pytest.fixture
def otel() -> Iterator[None]:
    """The SDK's handler for OpenTelemetry, enabled likewise."""
    ai.telemetry.enable()
    yield
    ai.telemetry.disable()


async def plain(loop: Callable[..., Coroutine[Any, Any, Any]] = agent, query: object = COMPARE) -> list[Told]:
    """The events of a loop that runs without Temporal."""

    async def run() -> list[Told]:
        recorder = Recorder()
        ai.telemetry.enable(recorder)
        try:
            async for _ in ai.run(loop, GatewayModel("test/model"), query):
                pass
        except ExceptionGroup:
            pass
        return recorder.only_run()

    before = telemetry._handler.get()
    try:
        return await run()
    finally:
        ai.telemetry.enable(before)


def in_order(events: list[Told]) -> list[Told]:
    """The events, where those of calls that end at about the same time have the order of their ids."""
    events = events.copy()
    for end in range(len(events)):
        while end and events[end - 1][0] == events[end][0] == "ToolCallFinish":
            if str(events[end - 1][1]["tool_call_id"]) <= str(events[end][1]["tool_call_id"]):
                break
            events[end - 1], events[end] = events[end], events[end - 1]
            end -= 1  # noqa: PLW2901
    return events


def address_of(client: Client) -> str:
    return client.service_client.config.target_host


async def start(client: Client, queue: str, workflow: type, *arguments: object) -> Handle:
    handle: Handle = await client.start_workflow(
        workflow.run,  # type: ignore[attr-defined]  # every workflow has one
        args=list(arguments),
        id=f"test-{uuid.uuid4().hex[:8]}",
        task_queue=queue,
    )
    return handle


def traced_worker(client: Client, **options: Any) -> Worker:
    return Worker(
        client,
        task_queue=uuid.uuid4().hex,
        workflows=[AgentWorkflow, agents.LongWorkflow, agents.TwoAgentsWorkflow, *traced.WORKFLOWS],
        **options,
    )


# ── Events ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_events_are_those_without_temporal(start_agent: StartAgent, recorder: Recorder) -> None:
    await (await start_agent(COMPARE)).result()
    durable = in_order(recorder.only_run())
    assert durable == in_order(await plain())
    assert [kind for kind, _ in durable] == [
        "RunStart",
        *["StepStart", "StepFinish"],
        *["ToolCallStart"] * 4,
        *["ToolCallFinish"] * 4,
        *["StepStart", "StepFinish"],
        "RunFinish",
    ]


async def test_a_handler_may_be_enabled_inside_of_the_workflow(client: Client, standin: StandIn) -> None:
    RECORDER.runs.clear()
    async with traced_worker(client, max_cached_workflows=0) as worker:
        await (await start(client, worker.task_queue, traced.EnablingWorkflow, COMPARE)).result()
    assert in_order(RECORDER.only_run()) == in_order(await plain())


async def test_a_workflow_may_go_without(client: Client, standin: StandIn, recorder: Recorder) -> None:
    async with traced_worker(client) as worker:
        await (await start(client, worker.task_queue, traced.DisablingWorkflow, COMPARE)).result()
        assert not recorder.runs
        await (await start(client, worker.task_queue, AgentWorkflow, request(TOKYO))).result()
        assert recorder.only_run()


def request(query: str) -> AgentRequest:
    return AgentRequest(query=query, model="test/model")


async def test_a_replay_tells_nothing(client: Client, start_agent: StartAgent, recorder: Recorder) -> None:
    handle = await start_agent(COMPARE)
    await handle.result()
    recorder.runs.clear()
    await Replayer(workflows=[AgentWorkflow], plugins=[DurableAgents()]).replay_workflow(await handle.fetch_history())
    assert not recorder.runs


async def test_without_a_cache_every_event_is_told_once(
    client: Client, standin: StandIn, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.transcript._cached", Forgetful())  # a replay for every query of an activity, too
    async with traced_worker(client, max_cached_workflows=0) as worker:
        handle = await start(client, worker.task_queue, AgentWorkflow, request(COMPARE))
        await handle.result()
        await handle.query(TRANSCRIPT_QUERY)
    assert in_order(recorder.only_run()) == in_order(await plain())


async def test_a_tool_call_takes_the_time_that_it_takes(client: Client, standin: StandIn) -> None:
    taken: list[float] = []

    class Clock:
        def handle(self, event: TelemetryEvent) -> None:
            if isinstance(event, ToolCallFinishEvent):
                taken.append(event.duration_ms)

    async def slowly(_: Call) -> Response:
        await asyncio.sleep(0.3)
        return demo._open_meteo_error("too late")

    standin.geocoding = slowly
    ai.telemetry.enable(Clock())
    async with traced_worker(client, max_cached_workflows=0) as worker:
        await (await start(client, worker.task_queue, AgentWorkflow, request(TOKYO))).result()
    ai.telemetry.disable()
    assert 290 < taken[0] < 60_000


async def test_a_worker_that_stops_tells_nothing(client: Client, standin: StandIn, recorder: Recorder) -> None:
    LINGERS.clear()
    standin.play(hang())
    async with traced_worker(client) as worker:
        waiting = await start(client, worker.task_queue, AgentWorkflow, request(TOKYO))
        await asyncio.to_thread(standin.wait_for, calls=1)
        lingering = await start(client, worker.task_queue, traced.LingeringWorkflow, TOKYO)
        assert await asyncio.to_thread(LINGERS.wait, 60)
    del worker
    gc.collect()
    for handle in (waiting, lingering):
        await handle.terminate()
    assert [events[-1][0] for events in recorder.runs.values()] == ["StepStart", "ToolCallFinish"]


async def test_a_workflow_task_that_is_made_again_tells_nothing_again(
    client: Client, standin: StandIn, recorder: Recorder
) -> None:
    FAULTS[:] = ["one", "two"]
    async with traced_worker(client) as worker:
        await (await start(client, worker.task_queue, traced.FaultyWorkflow, COMPARE)).result()
    assert not FAULTS
    assert in_order(recorder.only_run()) == in_order(await plain())


async def test_two_agents_in_one_run(client: Client, standin: StandIn, recorder: Recorder) -> None:
    queries = ["Weather in Tokyo", "Population of Paris"]
    async with traced_worker(client) as worker:
        await (await start(client, worker.task_queue, traced.TogetherWorkflow, queries)).result()
    # The tools of one run beside the other model call, so the events are the same in any order.
    assert sorted(map(repr, recorder.only_run())) == sorted(map(repr, await plain(traced.together, queries)))


async def test_many_runs_at_once_are_told_apart(start_agent: StartAgent, recorder: Recorder) -> None:
    for handle in [await start_agent(COMPARE) for _ in range(5)]:
        await handle.result()
    expected = in_order(await plain())
    assert len(recorder.runs) == 5
    for events in recorder.runs.values():
        assert in_order(events) == expected


async def test_two_runs_in_one_workflow_are_told_apart(client: Client, standin: StandIn, recorder: Recorder) -> None:
    async with traced_worker(client, max_cached_workflows=0) as worker:
        await (await start(client, worker.task_queue, agents.TwoAgentsWorkflow, [TOKYO, TOKYO])).result()
    one, other, together = sorted(recorder.runs.values(), key=len)
    assert one == other == await plain(query=TOKYO)
    # In the third, two calls of one id are open at the same time.
    twice = Counter(kind for kind, _ in [*one, *one])
    assert Counter(kind for kind, _ in together) == twice - Counter(["RunStart", "RunFinish"])


async def test_a_run_that_fails(start_agent: StartAgent, standin: StandIn, recorder: Recorder) -> None:
    standin.play(status(401), status(401))
    with pytest.raises(WorkflowFailureError):
        await (await start_agent(TOKYO)).result()
    durable = recorder.only_run()
    assert durable == await plain(query=TOKYO)
    assert [kind for kind, _ in durable] == ["RunStart", "StepStart", "RunFinish"]
    assert durable[-1][1]["error"] == "ExceptionGroup"


async def test_a_run_that_continues_as_new_is_told_as_one(
    client: Client, standin: StandIn, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("options.continuing.HISTORY_LIMIT", 10)
    script = [*(calls((str(i), "count_legs", {"legs": []})) for i in range(5)), text("done")]
    standin.play(*script)
    async with traced_worker(client) as worker:
        handle = await start(client, worker.task_queue, agents.LongWorkflow, agents.LongRequest(query="go"))
        assert await handle.result() == ("done", 6)
    assert (await handle.describe()).run_id != handle.first_execution_run_id
    durable = [event for events in recorder.runs.values() for event in events]
    standin.play(*script)
    assert durable == await plain(agents.other_agent, "go")


class Failing:
    def handle(self, event: TelemetryEvent) -> None:
        raise RuntimeError("no disk space")


async def test_a_handler_that_fails_does_not_touch_the_run(
    client: Client, start_agent: StartAgent, caplog: pytest.LogCaptureFixture
) -> None:
    ai.telemetry.enable(Failing())
    with caplog.at_level(logging.ERROR, "bridge.telemetry"):
        handle = await start_agent(TOKYO)
        assert "Tokyo" in (await handle.result()).text
    ai.telemetry.disable()
    assert len([record for record in caplog.records if record.name == "bridge.telemetry"]) == 8
    await Replayer(workflows=[AgentWorkflow], plugins=[DurableAgents()]).replay_workflow(await handle.fetch_history())


# ── Workers that die ─────────────────────────────────────────────────────────────────────────────────────


class Workers:
    """Workers in processes of their own, one after the other, and what they print."""

    def __init__(self, client: Client, wanted: str) -> None:
        self.queue = uuid.uuid4().hex
        self._command = [
            sys.executable,
            str(ROOT / "tests" / "traced_worker.py"),
            address_of(client),
            self.queue,
            wanted,
        ]
        self._running: list[subprocess.Popen[str]] = []
        self.printed: list[Any] = []

    def start(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        self._running.append(
            subprocess.Popen(self._command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    def end(self, *, kill: bool = False) -> None:
        process = self._running.pop()
        if kill:
            process.kill()
        out, _ = process.communicate(timeout=60)
        self.printed += [json.loads(line) for line in out.splitlines() if line.startswith(("[", "{"))]


@pytest.fixture
def workers(client: Client, request: pytest.FixtureRequest) -> Iterator[Workers]:
    workers = Workers(client, request.param)
    yield workers
    while workers._running:
        workers.end(kill=True)


async def killed_twice(client: Client, workers: Workers, standin: StandIn, query: str) -> Handle:
    """Have a run whose worker is killed while it asks the model, and another one while it calls tools."""
    standin.play(hang())
    workers.start()
    handle = await start(client, workers.queue, AgentWorkflow, request(query))
    await asyncio.to_thread(standin.wait_for, calls=1)
    workers.end(kill=True)
    standin.geocoding = hang()
    workers.start()
    await asyncio.to_thread(standin.wait_for, lookups=4)
    workers.end(kill=True)
    standin.geocoding = None
    workers.start()
    async with asyncio.timeout(120):
        await handle.result()
    workers.end()
    return handle


@pytest.mark.parametrize("workers", ["events"], indirect=True)
async def test_killed_workers_tell_every_event_once(client: Client, standin: StandIn, workers: Workers) -> None:
    await killed_twice(client, workers, standin, COMPARE)
    told = [(kind, fields) for kind, fields in workers.printed]
    assert in_order(told) == in_order(await plain())


# ── Spans ────────────────────────────────────────────────────────────────────────────────────────────────


class Span(NamedTuple):
    """What counts of an exported span."""

    name: str
    trace: int
    id: int
    parent: int | None
    attributes: dict[str, Any]
    seconds: float
    error: bool


def of_memory(span: ReadableSpan) -> Span:
    assert span.context is not None
    assert span.start_time is not None
    assert span.end_time is not None
    return Span(
        span.name,
        span.context.trace_id,
        span.context.span_id,
        span.parent.span_id if span.parent else None,
        dict(span.attributes or {}),
        (span.end_time - span.start_time) / 1e9,
        span.status.status_code == trace.StatusCode.ERROR,
    )


def of_json(span: dict[str, Any]) -> Span:
    times = [datetime.fromisoformat(span[time]) for time in ("start_time", "end_time")]
    return Span(
        span["name"],
        int(span["context"]["trace_id"], 16),
        int(span["context"]["span_id"], 16),
        int(span["parent_id"], 16) if span["parent_id"] else None,
        span["attributes"],
        (times[1] - times[0]).total_seconds(),
        span["status"]["status_code"] == "ERROR",
    )


def check_agent(spans: list[Span], parent: trace.SpanContext, tools: int) -> Span:
    """The spans of a run are one tree below the parent, with two model calls. Returns that of the run."""
    [run] = [span for span in spans if span.name == "ai.run"]
    assert run.parent == parent.span_id
    assert {span.trace for span in spans} == {parent.trace_id}
    assert Counter(span.name for span in spans) == {"ai.run": 1, "ai.stream": 2, "ai.tool": tools}
    assert len({span.id for span in spans}) == len(spans)
    assert {span.parent for span in spans if span is not run} == {run.id}
    asked = {span.attributes["ai.step.index"]: span.attributes for span in spans if span.name == "ai.stream"}
    assert [[*asked[i]["gen_ai.response.finish_reasons"]] for i in (0, 1)] == [["tool_calls"], ["stop"]]
    for side in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
        assert run.attributes[side] == asked[0][side] + asked[1][side] > 0
    for span in spans:
        if span.name == "ai.tool":
            assert {"gen_ai.tool.name", "gen_ai.tool.call.id", "gen_ai.tool.call.result"} <= span.attributes.keys()
    assert len({span.attributes["ai.run.id"] for span in spans if span.name != "ai.tool"}) == 1
    assert not any(span.error for span in spans)
    return run


@pytest.mark.parametrize("cached", [0, 100])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.usefixtures("otel")
async def test_one_trace_from_the_client_to_the_tools(
    client: Client, standin: StandIn, order: int, cached: int
) -> None:
    with exported_spans() as memory:
        plugins = [DurableAgents(GatewayModel), OpenTelemetryPlugin()][::order]
        other = await Client.connect(address_of(client), plugins=plugins)
        async with traced_worker(other, max_cached_workflows=cached) as worker:
            with trace.get_tracer("tests").start_as_current_span("client") as root:
                handle = await start(other, worker.task_queue, AgentWorkflow, request(COMPARE))
                await handle.result()
    spans = [of_memory(span) for span in memory.get_finished_spans()]
    check_agent([span for span in spans if span.name != "client"], root.get_span_context(), tools=4)


@pytest.mark.usefixtures("otel")
async def test_spans_below_those_of_temporal(client: Client, standin: StandIn) -> None:
    with exported_spans() as memory:
        plugins = [DurableAgents(GatewayModel), OpenTelemetryPlugin(add_temporal_spans=True)]
        other = await Client.connect(address_of(client), plugins=plugins)
        async with traced_worker(other) as worker:
            await (await start(other, worker.task_queue, AgentWorkflow, request(TOKYO))).result()
    spans = [of_memory(span) for span in memory.get_finished_spans()]
    [root] = [span for span in spans if span.parent is None and span.name.startswith("StartWorkflow")]
    [of_workflow] = [span for span in spans if span.name == "RunWorkflow:AgentWorkflow"]
    assert of_workflow.parent == root.id
    parent = trace.SpanContext(root.trace, of_workflow.id, is_remote=False)
    check_agent([span for span in spans if span.name.startswith("ai.")], parent, tools=1)
    assert Counter(span.name for span in spans if span.trace == root.trace)["RunActivity:llm_stream_activity"] == 2


@pytest.mark.usefixtures("otel")
async def test_runs_at_once_have_a_trace_each(client: Client, standin: StandIn) -> None:
    with exported_spans() as memory:
        other = await Client.connect(address_of(client), plugins=[DurableAgents(GatewayModel), OpenTelemetryPlugin()])
        roots, handles = [], []
        async with traced_worker(other) as worker:
            for _ in range(4):
                with trace.get_tracer("tests").start_as_current_span("client") as root:
                    handles.append(await start(other, worker.task_queue, AgentWorkflow, request(COMPARE)))
                roots.append(root.get_span_context())
            for handle in handles:
                await handle.result()
    spans = [of_memory(span) for span in memory.get_finished_spans() if span.name != "client"]
    for context in roots:
        check_agent([span for span in spans if span.trace == context.trace_id], context, tools=4)


@pytest.mark.parametrize("workers", ["spans"], indirect=True)
async def test_one_trace_across_killed_workers(client: Client, standin: StandIn, workers: Workers) -> None:
    with exported_spans():
        other = await Client.connect(address_of(client), plugins=[DurableAgents(), OpenTelemetryPlugin()])
        with trace.get_tracer("tests").start_as_current_span("client") as root:
            await killed_twice(other, workers, standin, COMPARE)
    spans = [of_json(span) for span in workers.printed]
    run = check_agent(spans, root.get_span_context(), tools=4)
    # The times are those of the run, not those of the last worker.
    assert run.seconds > sum(span.seconds for span in spans if span.name == "ai.stream") > 5


async def test_a_tracer_provider_of_another_kind_makes_no_span_twice(
    client: Client, standin: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    _warn.cache_clear()
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    ai.telemetry.enable(OtelHandler(tracer_provider=provider))
    for cached, spans in ((100, ["ai.run", "ai.stream", "ai.stream", "ai.tool"]), (0, [])):
        memory.clear()
        async with traced_worker(client, max_cached_workflows=cached) as worker:
            await (await start(client, worker.task_queue, AgentWorkflow, request(TOKYO))).result()
        assert sorted(span.name for span in memory.get_finished_spans()) == spans
    ai.telemetry.disable()
    assert [record.name for record in caplog.records if "create_tracer_provider" in record.message] == [
        "bridge.telemetry"
    ]


def test_the_example(run_main: RunMain) -> None:
    done = run_main("What is the weather in Tokyo?", script=ROOT / "examples" / "tracing.py")
    assert (done.returncode, done.stderr) == (0, "")
    answer, *tree = done.stdout.splitlines()
    assert answer == "Tokyo: 18.4 °C, partly cloudy, wind 12.1 km/h."
    assert [re.sub(r"=\d+", "=N", line) for line in tree] == [
        "question",
        "  ai.run input_tokens=N output_tokens=N",
        "    ai.stream input_tokens=N output_tokens=N",
        """    ai.tool name='get_weather' arguments='{"city": "Tokyo"}'""",
        "    ai.stream input_tokens=N output_tokens=N",
    ]


# ── Private names ────────────────────────────────────────────────────────────────────────────────────────


def test_the_private_names_of_the_sdk_are_where_they_were() -> None:
    handlers: object = telemetry._handler
    assert isinstance(handlers, _Handlers)
    assert isinstance(handlers._context, ContextVar)
    assert isinstance(telemetry._run_id, ContextVar)
    spans: dict[str, object] = {"_root_span": None, "_root_context": None, "_step_spans": {}, "_tool_spans": {}}
    assert {name: value for name, value in vars(OtelHandler()).items() if name in spans} == spans
    assert hasattr(OtelHandler(), "_tracer")
