"""The bridge: the unchanged loop in a real workflow, against real HTTP."""

import asyncio
import functools
import gc
import inspect
import json
import re
import types
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, override

import agents
import pydantic
import pytest
import toolbox
import vercel_ai_sdk as ai
from conftest import Forgetful, StartAgent
from standin import StandIn, hang, paced, parts, status, text, text_parts
from standin import tools as calls
from starlette.responses import JSONResponse, Response
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError
from temporalio.worker import Replayer, Worker
from vercel_ai_sdk.core.runtime import _runtime
from vercel_ai_sdk.core.tools import _tool_registry

import tools
import workflow
from app.demo import finish, tool_call
from bridge.wire import ModelReply, ModelRequest
from durable import _Pump, temporal_tool
from options.approvals import approve_if_enabled
from options.gateway import GatewayModel
from plugin import DurableAgents

type Execute = Callable[..., Awaitable[Any]]

COMPARE = "Compare the weather and the population of New York and Los Angeles"


@pytest.fixture
def execute(client: Client, queue: str, standin: StandIn) -> Execute:
    async def run(cls: type, *arguments: object) -> Any:
        handle: WorkflowHandle[Any, Any] = await client.start_workflow(
            cls.run,  # type: ignore[attr-defined]  # every workflow has one
            args=list(arguments),
            id=f"test-{uuid.uuid4().hex[:8]}",
            task_queue=queue,
        )
        async with asyncio.timeout(60):
            return await handle.result()

    return run


@pytest.fixture(params=["from the cache", "by query"])
def fetched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the model activities get their requests; in these tests they share a process with the workflow."""
    if request.param == "by query":
        monkeypatch.setattr("bridge.transcript._cached", Forgetful())


def dumped(messages: list[ai.Message]) -> list[dict[str, Any]]:
    return [message.model_dump(exclude={"id"}) for message in messages]


def tool_parts(messages: list[ai.Message]) -> dict[str, ai.ToolPart]:
    return {part.tool_call_id: part for message in messages for part in message.tool_calls}


# ── The loop ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_same_loop_gives_the_same_messages_with_and_without_temporal(execute: Execute) -> None:
    durable = await execute(agents.TranscriptWorkflow, COMPARE)
    plain = await agents.transcript_of(ai.run(workflow.agent, GatewayModel("test/model"), COMPARE))
    assert dumped(durable) == dumped(plain)
    assert len(tool_parts(plain)) == 4


def test_the_loop_does_not_know_temporal() -> None:
    source = inspect.getsource(workflow.agent).lower()
    assert "temporal" not in source
    assert "activit" not in source
    assert not {"workflow", "TemporalLanguageModel"} & set(workflow.agent.__code__.co_names)


async def test_tools_are_called_in_parallel_and_every_call_is_an_activity(start_agent: StartAgent) -> None:
    handle = await start_agent(COMPARE)
    await handle.result()
    events = [event.event_type for event in (await handle.fetch_history()).events]
    scheduled = [i for i, event in enumerate(events) if event == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED]
    assert len(scheduled) == 6
    assert scheduled[1:5] == list(range(scheduled[1], scheduled[1] + 4))


async def test_the_history_replays(client: Client, start_agent: StartAgent) -> None:
    handle = await start_agent(COMPARE)
    await handle.result()
    replayer = Replayer(workflows=[workflow.AgentWorkflow], plugins=[DurableAgents()])
    await replayer.replay_workflow(await handle.fetch_history())


async def test_nothing_of_a_finished_run_is_kept(start_agent: StartAgent) -> None:
    def kept() -> int:
        gc.collect()
        return len(_Pump._started)

    await (await start_agent(COMPARE)).result()
    before = kept()
    for _ in range(5):
        await (await start_agent(COMPARE)).result()
    assert kept() <= before + 1  # the worker may not be done with the last one


@pytest.mark.usefixtures("fetched")
async def test_two_agents_at_once_keep_their_transcripts_apart(execute: Execute) -> None:
    answers = await execute(agents.TwoAgentsWorkflow, ["Weather in Tokyo", "Population of Paris"])
    assert ["Tokyo" in answer for answer in answers] == [True, False, True, False]
    assert ["2,138,551" in answer for answer in answers] == [False, True, False, True]


# ── Tools ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrapped_tool_is_a_new_tool_of_the_same_name_and_schema() -> None:
    wrapped = toolbox.TOOLS[0]
    assert isinstance(wrapped, ai.Tool)
    assert wrapped is not toolbox.count_legs
    assert wrapped.schema == toolbox.count_legs.schema


def test_wrapping_again_gives_the_first_wrapper_and_nothing_else_of_the_name_is_wrapped() -> None:
    wrapped = temporal_tool(tools.get_weather, before=approve_if_enabled)
    assert temporal_tool(tools.get_weather, before=approve_if_enabled) is wrapped
    with pytest.raises(TypeError, match="get_weather is wrapped already"):
        temporal_tool(wrapped)
    with pytest.raises(TypeError, match="get_weather is wrapped already"):
        temporal_tool(tools.get_weather, start_to_close_timeout=timedelta(minutes=1))


def test_a_tool_that_takes_the_runtime_is_refused() -> None:
    @ai.tool
    async def nosy(runtime: ai.Runtime) -> None: ...

    with pytest.raises(TypeError, match=r"nosy takes an ai\.Runtime"):
        temporal_tool(nosy)


async def test_outside_a_workflow_a_wrapped_tool_calls_its_original(standin: StandIn) -> None:
    wrapped = temporal_tool(tools.get_population, before=approve_if_enabled)
    assert await wrapped(city="Tokyo") == await tools.get_population(city="Tokyo")
    with pytest.raises(ValueError, match="Atlantis"):
        await wrapped(city="Atlantis")


async def test_arguments_arrive_as_annotated_and_options_are_per_tool(
    client: Client, queue: str, standin: StandIn
) -> None:
    legs = [{"start": "a", "end": "b"}, {"start": "b", "end": "c"}]
    standin.play(calls(("1", "count_legs", {"legs": legs})), text("done"))
    handle = await client.start_workflow(agents.OtherWorkflow.run, "go", id=uuid.uuid4().hex, task_queue=queue)
    part = tool_parts(await handle.result())["1"]
    assert (part.status, part.result) == ("result", {"legs": 2, "ends": ["b", "c"], "note": None})
    history = await handle.fetch_history()
    timeouts = [
        event.activity_task_scheduled_event_attributes.start_to_close_timeout.seconds
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    assert timeouts == [86_400, 77, 86_400]


async def test_a_loop_can_call_tools_itself(execute: Execute) -> None:
    counted, failure = await execute(agents.DirectWorkflow)
    assert counted == {"legs": 1, "ends": ["b"], "note": None}
    assert failure == "break_down failed: directly"


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("get_time", {"zone": "UTC"}, "ToolError: there is no tool 'get_time'; the tools are: count_legs, "),
        ("not_offered", {}, "ToolError: there is no tool 'not_offered'"),
        ("", {}, "ToolError: there is no tool ''"),
        ("count_legs", '{"legs": [', "ToolError: the arguments of count_legs are not valid JSON"),
        ("count_legs", '{"legs": [], "note": NaN}', "ToolError: the arguments of count_legs are not valid JSON"),
        ("count_legs", '{"legs": [], "note": 1e999}', "ToolError: the arguments of count_legs are not valid JSON"),
        ("count_legs", '{"legs": [], "note": "\\ud800"}', "ToolError: the arguments of count_legs are not valid JSON"),
        ("count_legs", "[1]", "ToolError: the arguments of count_legs must be a JSON object"),
        ("count_legs", {}, "ValidationError: 1 validation error"),
        ("count_legs", "", "ValidationError: 1 validation error"),
        ("count_legs", {"legs": 7}, "ValidationError: 1 validation error"),
        ("count_legs", {"legs": [], "extra": 1}, "ToolError: count_legs: got an unexpected keyword argument 'extra'"),
        ("break_down", {"reason": "no luck"}, "ToolError: break_down failed: no luck"),
        ("misread", {}, "ToolError: misread failed: KeyError: 'population'"),
        ("not_json", {}, "ToolError: not_json failed: the result of not_json is not JSON"),
        ("big_result", {"size": 3 << 20}, "ToolError: big_result failed: the result of big_result has 3,145,"),
    ],
)
async def test_a_call_that_cannot_work_goes_back_to_the_model(
    execute: Execute, standin: StandIn, name: str, arguments: object, problem: str
) -> None:
    standin.play(calls(("1", name, arguments)), text("I see"))
    messages = await execute(agents.OtherWorkflow, "go")
    assert messages[-1].text == "I see"
    [result] = standin.calls[1].tool_results
    assert result["output"]["type"] == "error-text"
    assert result["output"]["value"].startswith(problem)


async def test_a_failing_tool_is_tried_again_first(execute: Execute, standin: StandIn) -> None:
    standin.play(calls(("1", "break_down", {"reason": (reason := uuid.uuid4().hex)})), text("I see"))
    await execute(agents.OtherWorkflow, "go")
    assert toolbox.ATTEMPTS.count(reason) == 2


async def test_a_tool_that_fails_in_a_task_group_says_why_and_is_not_tried_again(
    execute: Execute, standin: StandIn
) -> None:
    standin.play(calls(("1", "gather_facts", {"names": [name := uuid.uuid4().hex]})), text("I see"))
    await execute(agents.OtherWorkflow, "go")
    [result] = standin.calls[1].tool_results
    assert result["output"]["value"] == f"ToolError: gather_facts failed: there is no {name}"
    assert toolbox.ATTEMPTS.count(name) == 1


async def test_a_final_failure_in_a_task_group_is_final(execute: Execute, standin: StandIn) -> None:
    toolbox.ATTEMPTS.clear()
    standin.play(calls(("1", "refuse_together", {})), text("I see"))
    await execute(agents.OtherWorkflow, "go")
    [result] = standin.calls[1].tool_results
    assert result["output"]["value"] == "ToolError: refuse_together failed: no such card"
    assert toolbox.ATTEMPTS == ["refused together"]


async def test_a_tool_takes_any_arguments_as_without_temporal(execute: Execute, standin: StandIn) -> None:
    arguments = {"first": 1, "second": [2]}
    assert await toolbox.any_arguments(**arguments) == arguments  # type: ignore[arg-type]  # they are of all kinds
    standin.play(calls(("1", "any_arguments", arguments)), text("done"))
    assert tool_parts(await execute(agents.OtherWorkflow, "go"))["1"].result == arguments


async def test_tool_calls_with_one_id_are_told_apart(execute: Execute, standin: StandIn) -> None:
    same: tuple[str, str, object] = ("1", "count_legs", {"legs": []})
    other = ("1", "count_legs", {"legs": [{"start": "a", "end": "b"}]})
    standin.play(calls(same, same, other), calls(other), text("done"))
    messages = await execute(agents.OtherWorkflow, "go")
    assert {id: part.result["legs"] for id, part in tool_parts(messages).items()} == {"1": 0, "1-2": 1, "1-3": 1}
    assert [result["toolCallId"] for result in standin.calls[2].tool_results] == ["1", "1-2", "1-3"]


async def test_broken_calls_with_one_id_are_told_apart_too(execute: Execute, standin: StandIn) -> None:
    standin.play(calls(("1", "count_legs", '{"legs": ['), ("1", "count_legs", '{"legs": [7')), text("done"))
    messages = await execute(agents.OtherWorkflow, "go")
    assert {id: part.status for id, part in tool_parts(messages).items()} == {"1": "error", "1-2": "error"}


async def test_a_tool_that_is_not_finished_in_time_is_reported_to_the_model(execute: Execute, standin: StandIn) -> None:
    standin.play(calls(("1", "wait_for_ever", {})), text("I see"))
    await execute(agents.OtherWorkflow, "go")
    [result] = standin.calls[1].tool_results
    late = "it was not finished in time (start_to_close), and nobody knows whether it took effect"
    problem = f"ToolError: wait_for_ever failed: {late}"
    assert result["output"] == {"type": "error-text", "value": problem}


async def test_a_tool_that_no_worker_has_is_left_to_another(execute: Execute) -> None:
    with pytest.raises(WorkflowFailureError) as raised:
        await execute(agents.LostToolWorkflow)
    assert isinstance(raised.value.cause, ActivityError)
    error = raised.value.cause.cause
    assert isinstance(error, ApplicationError)
    assert (error.message, error.non_retryable) == ("this worker has no tool 'lost'", False)


async def slowly(call: object) -> Response:
    await asyncio.sleep(3)
    return JSONResponse({"results": [{"name": "Tokyo", "latitude": 35.6895, "longitude": 139.6917}]})


async def test_a_long_tool_call_is_no_silence(execute: Execute, standin: StandIn) -> None:
    deltas = ['{"legs": [], "note": "', *("word " for _ in range(8)), '"}']
    slow = [{"type": "tool-input-delta", "id": "1", "delta": delta} for delta in deltas]
    standin.play(
        paced(
            0.2,
            {"type": "tool-input-start", "id": "1", "toolName": "count_legs"},
            *slow,
            {"type": "tool-input-end", "id": "1"},
            {"type": "tool-call", "toolCallId": "1", "toolName": "count_legs", "input": "".join(deltas)},
            finish("tool-calls"),
        ),
        text("done"),
    )
    assert await execute(agents.ImpatientWorkflow, "go") == "done"
    assert len(standin.calls) == 2


async def test_a_call_announced_without_arguments_is_not_taken_for_another(execute: Execute, standin: StandIn) -> None:
    announced = [{"type": "tool-input-start", "id": "", "toolName": name} for name in ("break_down", "count_legs")]
    whole = {"type": "tool-call", "toolCallId": "", "toolName": "count_legs", "input": '{"legs": []}'}
    end = {"type": "tool-input-end", "id": ""}
    standin.play(parts(announced[0], end, announced[1], end, whole, finish("tool-calls")), text("done"))
    messages = await execute(agents.OtherWorkflow, "go")
    assert [(part.tool_name, part.status) for part in tool_parts(messages).values()] == [
        ("break_down", "error"),
        ("count_legs", "result"),
    ]


async def test_no_timer_is_written_while_a_slow_tool_runs(start_agent: StartAgent, standin: StandIn) -> None:
    async def count() -> dict[str, int]:
        handle = await start_agent("Weather in Tokyo and Paris")
        await handle.result()
        events = [EventType.Name(event.event_type) for event in (await handle.fetch_history()).events]
        return {name: events.count(name) for name in events if "WORKFLOW_TASK" not in name}

    fast = await count()
    standin.geocoding = slowly
    assert await count() == fast
    assert not any("TIMER" in name for name in fast)


async def test_a_loop_may_give_up_a_tool_and_writes_no_other_timers(
    client: Client, queue: str, standin: StandIn
) -> None:
    standin.play(calls(("1", "wait_for_ever", {})), text("without it, then"))
    handle = await client.start_workflow(agents.WaitingWorkflow.run, id=uuid.uuid4().hex, task_queue=queue)
    async with asyncio.timeout(30):
        assert await handle.result() == "without it, then"
    events = [event.event_type for event in (await handle.fetch_history()).events]
    assert events.count(EventType.EVENT_TYPE_TIMER_STARTED) == 1  # of the loop's own timeout


async def test_a_query_of_the_workflow_itself_wins_over_that_of_the_bridge(
    client: Client, queue: str, standin: StandIn
) -> None:
    standin.play(text("done"))
    handle = await client.start_workflow(agents.OwnQueryWorkflow.run, id=uuid.uuid4().hex, task_queue=queue)
    await handle.result()
    assert await handle.query("transcript") == "its own"


async def test_a_loop_may_continue_its_run_as_new_itself(execute: Execute) -> None:
    async with asyncio.timeout(30):
        assert await execute(agents.AgainWorkflow, 2) == "done"


def test_the_private_names_of_the_sdk_are_still_there() -> None:
    """Fails when an update of the SDK moves what durable.py and activities.py have to touch (`private:` in both)."""
    assert isinstance(tools.get_weather._fn, types.FunctionType)
    assert tools.get_weather._validator is not None
    assert _tool_registry["get_weather"] is temporal_tool(tools.get_weather, before=approve_if_enabled)
    assert ai.Runtime()._step_queue.empty()
    assert ai.Runtime()._message_queue.empty()
    assert _runtime.get(None) is None


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("fetched")
async def test_a_structured_answer_comes_back_as_without_temporal(execute: Execute, standin: StandIn) -> None:
    standin.play(text('{"city": "Tokyo", ', '"celsius": 18.4}'))
    message = await execute(agents.StructuredWorkflow, "forecast")
    assert message.output == agents.Forecast(city="Tokyo", celsius=18.4)
    assert isinstance(message.parts[-1], ai.StructuredOutputPart)
    assert standin.calls[0].body["responseFormat"]["name"] == "Forecast"


async def test_an_answer_of_the_wrong_structure_is_asked_for_again(execute: Execute, standin: StandIn) -> None:
    standin.play(text("no JSON"), text('{"city": 1}'), text('{"city": "Tokyo", "celsius": 1}'))
    assert (await execute(agents.StructuredWorkflow, "forecast")).output.city == "Tokyo"


@pytest.mark.usefixtures("fetched")
async def test_every_part_of_a_message_crosses_both_ways(execute: Execute, standin: StandIn) -> None:
    standin.play(
        parts(
            {"type": "reasoning-start", "id": "r"},
            {"type": "reasoning-delta", "id": "r", "delta": "hmm"},
            {"type": "reasoning-end", "id": "r"},
            {"type": "file", "mediaType": "image/png", "data": "aGVsbG8="},
            *text_parts("a picture"),
            finish("stop", 3, 4),
        )
    )
    sent = [
        ai.Message(
            role="user",
            parts=[
                ai.TextPart(text="look"),
                ai.FilePart(data=b"\x89PNG\x00\xff", media_type="image/png", filename="a.png"),
                ai.FilePart(data="aGVsbG8=", media_type="image/png"),
            ],
        ),
        ai.Message(
            role="assistant",
            parts=[
                ai.ReasoningPart(text="thought", signature="signed"),
                ai.ToolPart(tool_call_id="1", tool_name="t", tool_args="{}", status="error", result="bad"),
                ai.HookPart(hook_id="h", hook_type="ToolApproval", status="pending", metadata={"a": [1]}),
                ai.StructuredOutputPart(data={"city": "x", "celsius": 1.5}, output_type_name="agents.Forecast"),
            ],
        ),
    ]
    answer = await execute(agents.SendWorkflow, ModelRequest(messages=sent))
    assert [type(part) for part in answer.parts] == [ai.ReasoningPart, ai.FilePart, ai.TextPart]
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 4)
    [user, assistant, tool] = standin.calls[0].prompt
    assert user["content"][1]["data"] == "data:image/png;base64,iVBORwD/"
    assert user["content"][2]["data"].endswith("aGVsbG8=")
    signed = {"anthropic": {"signature": "signed"}}
    assert assistant["content"][0] == {"type": "reasoning", "text": "thought", "providerOptions": signed}
    assert tool["content"][0]["output"] == {"type": "error-text", "value": "bad"}


async def test_messages_with_binary_files_come_out_of_the_converter_as_they_went_in(client: Client) -> None:
    message = ai.Message(
        role="assistant",
        parts=[ai.FilePart(data=bytes(range(256)), media_type="a/b"), ai.FilePart(data="base64", media_type="a/b")],
    )
    [payload] = await client.data_converter.encode([ModelReply(message=message)])
    [loaded] = await client.data_converter.decode([payload], [ModelReply])
    assert loaded.message == message


@pytest.mark.usefixtures("fetched")
async def test_a_transcript_longer_than_a_payload_reaches_the_model(execute: Execute, standin: StandIn) -> None:
    standin.play(calls(*((str(i), "big_result", {"size": 1_500_000}) for i in range(3))), text("long"))
    assert await execute(agents.AnswerWorkflow, "go") == "long"
    assert [len(result["output"]["value"]) for result in standin.calls[1].tool_results] == [1_500_000] * 3


async def test_surrogate_halves_in_an_answer_are_joined_or_replaced(execute: Execute, standin: StandIn) -> None:
    standin.play(text("\ud83d", "\ude00 \ud800!"))
    message = await execute(agents.SendWorkflow, ModelRequest(messages=ai.make_messages(user="smile")))
    assert message.text == "\N{GRINNING FACE} \ufffd!"


# ── Failures ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_denied"),
        (404, "model_not_found"),
    ],
)
async def test_an_error_that_will_not_pass_ends_the_run_at_once(
    start_agent: StartAgent, standin: StandIn, code: int, kind: str
) -> None:
    standin.play(status(code, kind, "not like this"))
    failure = await failure_of(await start_agent())
    assert (failure.type, failure.message) == ("GatewayFailure", f"HTTP {code}: not like this")
    assert len(standin.calls) == 1


async def test_a_loop_that_never_ends_is_stopped_at_the_limit(start_agent: StartAgent, standin: StandIn) -> None:
    standin.play(*[calls((str(i), "get_population", {"city": "Tokyo"})) for i in range(4)])
    error = await failure_of(await start_agent(max_model_calls=3))
    assert error.type == "ModelCallLimit"
    assert len(standin.calls) == 3


async def test_no_call_is_made_when_the_tokens_are_used_up(start_agent: StartAgent, standin: StandIn) -> None:
    turns = [calls((str(i), "get_population", {"city": "Tokyo"})) for i in range(4)]
    standin.play(*turns)  # 15 tokens each
    error = await failure_of(await start_agent(max_tokens=31))
    assert (error.type, error.message) == ("TokenLimit", "the agent used 45 tokens, and its limit is 31")
    assert len(standin.calls) == 3


async def test_an_answer_that_uses_the_last_tokens_is_an_answer(start_agent: StartAgent, standin: StandIn) -> None:
    standin.play(text("the answer"))
    assert (await (await start_agent(max_tokens=1)).result()).text == "the answer"


@pytest.mark.parametrize("in_flight", ["model", "tool"])
async def test_a_cancelled_run_ends_as_cancelled(start_agent: StartAgent, standin: StandIn, in_flight: str) -> None:
    if in_flight == "model":
        standin.play(hang())
    else:
        standin.geocoding = hang()
    handle = await start_agent("Weather in Tokyo and Paris")
    await asyncio.to_thread(standin.wait_for, calls=1, lookups=2 * (in_flight == "tool"))
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as raised:
        async with asyncio.timeout(30):
            await handle.result()
    assert isinstance(raised.value.cause, CancelledError)
    assert len(standin.calls) == 1


async def test_an_answer_of_a_type_that_no_worker_can_import_is_not_asked_for(
    execute: Execute, standin: StandIn
) -> None:
    with pytest.raises(WorkflowFailureError) as raised:
        await execute(agents.LocalTypeWorkflow)
    assert isinstance(raised.value.cause, ApplicationError)
    assert raised.value.cause.type == "OutputType"
    assert standin.calls == []


class OddModel(ai.LanguageModel):
    """Another provider's model, which ends its first two streams in odd ways."""

    def __init__(self, asked: list[str], name: str) -> None:
        asked.append(name)
        self._attempt = len(asked)

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        if self._attempt == 1:
            raise TimeoutError("the line is busy")
        if self._attempt == 3:
            json.loads("no JSON at all")
        for message in list[ai.Message]():  # a stream of nothing
            yield message


async def test_the_failures_of_any_model_are_sorted(client: Client) -> None:
    asked: list[str] = []
    queue = uuid.uuid4().hex
    config = client.config()
    config["plugins"] = [DurableAgents(functools.partial(OddModel, asked))]
    worker = Worker(Client(**config), task_queue=queue, workflows=[agents.ImpatientWorkflow])
    async with worker:
        handle = await client.start_workflow(
            agents.ImpatientWorkflow.run, "go", id=f"test-{queue[:8]}", task_queue=queue
        )
        error = await failure_of(handle)
        events = (await handle.fetch_history()).events
    [started] = [event for event in events if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED]
    # A passing fault, an answer of nothing, and one that will not do any better.
    assert asked == ["test/model"] * 3
    last = started.activity_task_started_event_attributes.last_failure
    assert last.message == "the model's stream was empty"
    assert (error.type, error.non_retryable) == ("JSONDecodeError", True)


async def test_the_bridge_leaves_the_names_of_a_workflow_alone(execute: Execute, standin: StandIn) -> None:
    standin.play(text("the answer"))
    assert await execute(agents.NamesWorkflow) == "the answer"


async def test_a_bug_in_the_loop_fails_the_run(execute: Execute) -> None:
    with pytest.raises(WorkflowFailureError) as raised:
        await execute(agents.BrokenWorkflow)
    assert isinstance(raised.value.cause, ApplicationError)
    assert raised.value.cause.type == "AttributeError"
    assert raised.value.cause.message == "AttributeError: 'NoneType' object has no attribute 'attribute'"


async def test_an_answer_of_nothing_is_asked_for_again_and_then_reported(
    start_agent: StartAgent, standin: StandIn
) -> None:
    standin.play(text(), text(" "), text("\n"))
    error = await failure_of(await start_agent())
    assert error.message == "the model answered with nothing (finish reason: stop)"


async def failure_of(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as raised:
        async with asyncio.timeout(60):
            await handle.result()
    error: BaseException | None = raised.value
    while error and error.__cause__:
        error = error.__cause__
    assert isinstance(error, ApplicationError)
    return error


# ── Continuing as new ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs continue as new after a turn or two."""
    monkeypatch.setattr("options.continuing.HISTORY_LIMIT", 10)


@pytest.mark.usefixtures("soon")
async def test_a_run_continues_as_new_and_nothing_is_asked_or_done_again(execute: Execute, standin: StandIn) -> None:
    turns = [calls((str(i), "count_legs", {"legs": [{"start": "a", "end": str(i)}]})) for i in range(8)]
    standin.play(*turns, text("done"))
    request = agents.LongRequest(query="go")
    assert await execute(agents.LongWorkflow, request) == ("done", 9)
    assert len(standin.calls) == 9
    # Each call had the whole conversation, as if there had been one run.
    results = standin.calls[-1].tool_results
    assert [result["output"]["value"]["ends"] for result in results] == [[str(i)] for i in range(8)]


@pytest.mark.usefixtures("soon")
async def test_messages_of_the_loop_itself_are_no_reason_to_fail(execute: Execute, standin: StandIn) -> None:
    turns = [calls((str(i), "count_legs", {"legs": []})) for i in range(4)]
    standin.play(*turns, text("done"))
    assert await execute(agents.LongWorkflow, agents.LongRequest(query="example")) == ("done", 5)


@pytest.mark.usefixtures("soon")
async def test_tool_errors_and_what_the_model_sent_beside_its_calls_are_carried_over(
    execute: Execute, standin: StandIn
) -> None:
    said = [
        {"type": "reasoning-start", "id": "r"},
        {"type": "reasoning-delta", "id": "r", "delta": "hmm"},
        {"type": "reasoning-end", "id": "r"},
        *text_parts("one moment"),
    ]
    broken = tool_call("1", "break_down", {"reason": "no luck"})
    standin.play(parts(*said, *broken, finish("tool-calls")), text("I see"))
    assert await execute(agents.LongWorkflow, agents.LongRequest(query="go")) == ("I see", 2)
    assistant, tool = standin.calls[1].prompt[-2:]
    assert [part["type"] for part in assistant["content"]] == ["reasoning", "text", "tool-call"]
    assert tool["content"][0]["output"] == {"type": "error-text", "value": "ToolError: break_down failed: no luck"}


@pytest.mark.usefixtures("soon")
async def test_a_tool_that_returns_nothing_is_carried_over(execute: Execute, standin: StandIn) -> None:
    turns = [calls((str(i), "keep_quiet", {})) for i in range(3)]
    standin.play(*turns, text("done"))
    assert await execute(agents.LongWorkflow, agents.LongRequest(query="go")) == ("done", 4)
    assert [result["output"]["value"] for result in standin.calls[-1].tool_results] == [None] * 3


@pytest.mark.usefixtures("soon")
async def test_the_limit_on_calls_counts_across_runs(client: Client, queue: str, standin: StandIn) -> None:
    standin.play(*[calls((str(i), "count_legs", {"legs": []})) for i in range(21)])
    request = agents.LongRequest(query="go")
    handle = await client.start_workflow(agents.LongWorkflow.run, request, id=uuid.uuid4().hex, task_queue=queue)
    assert (await failure_of(handle)).type == "ModelCallLimit"
    assert len(standin.calls) == 20


@pytest.mark.usefixtures("soon")
async def test_the_limit_on_tokens_counts_across_runs(client: Client, queue: str, standin: StandIn) -> None:
    standin.play(*[calls((str(i), "count_legs", {"legs": []})) for i in range(9)])
    request = agents.LongRequest(query="go")
    handle = await client.start_workflow(agents.ThriftyWorkflow.run, request, id=uuid.uuid4().hex, task_queue=queue)
    error = await failure_of(handle)
    assert (error.type, error.message) == ("TokenLimit", "the agent used 60 tokens, and its limit is 60")
    assert len(standin.calls) == 4
    assert (await handle.describe()).run_id != handle.first_execution_run_id


@pytest.mark.usefixtures("soon")
async def test_a_long_conversation_that_compresses_well_is_carried_over(execute: Execute, standin: StandIn) -> None:
    standin.play(calls(*((str(i), "big_result", {"size": 1_500_000}) for i in range(8))), text("done"))
    assert await execute(agents.LongWorkflow, agents.LongRequest(query="go")) == ("done", 2)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("results", [1, 8])
async def test_a_conversation_that_cannot_be_carried_over_fails_the_run(
    client: Client, queue: str, standin: StandIn, results: int
) -> None:
    standin.play(calls(*((str(i), "noise", {"size": 1_500_000}) for i in range(results))), text("never"))
    request = agents.LongRequest(query="go")
    handle = await client.start_workflow(agents.LongWorkflow.run, request, id=uuid.uuid4().hex, task_queue=queue)
    error = await failure_of(handle)
    assert error.type == "ConversationTooLong"
    assert re.search(r"too long to continue as new: [\d,]{9,10} bytes, where 1,048,064 can", error.message)


@pytest.mark.usefixtures("soon")
async def test_a_loop_that_does_not_come_back_to_where_it_was_fails_the_run(
    client: Client, queue: str, standin: StandIn
) -> None:
    standin.play(*[calls((str(i), "count_legs", {"legs": []})) for i in range(9)])
    request = agents.LongRequest(query="two")
    handle = await client.start_workflow(agents.LongWorkflow.run, request, id=uuid.uuid4().hex, task_queue=queue)
    assert (await failure_of(handle)).type == "NotResumable"


@pytest.mark.usefixtures("soon")
async def test_a_run_that_continued_as_new_replays(client: Client, queue: str, standin: StandIn) -> None:
    standin.play(*[calls((str(i), "count_legs", {"legs": []})) for i in range(4)], text("done"))
    request = agents.LongRequest(query="go")
    handle = await client.start_workflow(agents.LongWorkflow.run, request, id=uuid.uuid4().hex, task_queue=queue)
    await handle.result()
    replayer = Replayer(workflows=[agents.LongWorkflow], plugins=[DurableAgents()])
    first = client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
    for part in (first, client.get_workflow_handle(handle.id)):
        history = await part.fetch_history()
        assert not any(event.HasField("timer_started_event_attributes") for event in history.events)
        await replayer.replay_workflow(history)
