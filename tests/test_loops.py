"""Loops of the SDK come out as without Temporal, also where they fail; and their faults are named."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import loops
import pytest
import vercel_ai_sdk as ai
from standin import StandIn, text
from standin import tools as calls
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Replayer, Worker
from vercel_ai_sdk.core.tools import _tool_registry

from bridge.transcript import TRANSCRIPT_QUERY, Transcript
from options.gateway import GatewayModel
from plugin import DurableAgents

GOOD = '{"city": "Tokyo", "celsius": 18.4}'
TRUNCATED = '{"city": "Tokyo", "cel'
WRONG = '{"city": "Tokyo", "celsius": "warm"}'

type Start = Callable[..., Awaitable[WorkflowHandle[object, object]]]


@pytest.fixture(params=[1000, 0], ids=["cached", "replayed"])
async def start(client: Client, request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    queue = uuid.uuid4().hex

    async def start(name: str, *arguments: object) -> WorkflowHandle[object, object]:
        return await client.start_workflow(name, args=arguments, id=uuid.uuid4().hex, task_queue=queue)

    async with Worker(client, task_queue=queue, workflows=loops.WORKFLOWS, max_cached_workflows=request.param):
        yield start


async def failure_of(handle: WorkflowHandle[object, object]) -> ApplicationError:
    async with asyncio.timeout(30):
        with pytest.raises(WorkflowFailureError) as raised:
            await handle.result()
    failure = raised.value.cause
    while not isinstance(failure, ApplicationError):  # of an activity
        assert isinstance(failure.__cause__, BaseException)
        failure = failure.__cause__
    return failure


@pytest.mark.parametrize("bad", [TRUNCATED, WRONG], ids=["no JSON", "another type"])
@pytest.mark.parametrize("around", [True, False], ids=["around the run", "in the loop"])
async def test_an_answer_of_the_wrong_form_is_caught_as_without_temporal(
    start: Start, standin: StandIn, around: bool, bad: str
) -> None:
    standin.play(text(bad), text(GOOD))
    plain = await (loops.run_again if around else loops.ask_again)(GatewayModel("test/model"))
    standin.play(text(bad), text(bad), text(bad), text(GOOD))  # the activity itself asks three times
    handle = await start("AskAgain", around)
    assert await handle.result() == plain
    assert len(plain) == 1
    await Replayer(workflows=loops.WORKFLOWS, plugins=[DurableAgents()]).replay_workflow(await handle.fetch_history())


async def test_an_answer_of_the_wrong_form_that_nobody_catches_is_told_in_one_line(
    start: Start, standin: StandIn
) -> None:
    standin.play(*[text(WRONG)] * 3)
    failure = await failure_of(await start("AskOnce"))
    assert failure.message.startswith("the model's answer is not a Forecast: 1 validation error")
    assert "\n" not in failure.message


@pytest.mark.parametrize(
    ("name", "arguments"), [("fetch", {"url": "http://127.0.0.1:9/"}), ("in_a_thread", {"text": "x"})]
)
async def test_a_tool_that_was_not_wrapped_is_named(
    start: Start, standin: StandIn, name: str, arguments: dict[str, str]
) -> None:
    standin.play(calls(("1", name, arguments)))
    failure = await failure_of(await start("Unwrapped"))
    assert failure.message == (
        f"the tool {name} does I/O in the workflow: make it an activity, with temporal_tool({name})"
    )


async def test_io_of_the_loop_itself_is_called_that(start: Start) -> None:
    failure = await failure_of(await start("IoInTheLoop"))
    assert failure.message.startswith("the loop does I/O in the workflow: ")


async def test_a_tool_that_takes_the_name_of_a_wrapped_one_is_refused(start: Start, standin: StandIn) -> None:
    wrapped = _tool_registry["get_weather"]
    try:

        @ai.tool
        async def get_weather(city: str) -> str:
            """Another one."""
            return "run in the workflow"

        failure = await failure_of(await start("AskOnce"))
    finally:
        _tool_registry["get_weather"] = wrapped
    assert failure.message.startswith("another tool called get_weather was defined after temporal_tool()")
    assert standin.calls == []


async def test_the_transcript_tells_the_conversations_of_a_run_apart(start: Start, standin: StandIn) -> None:
    standin.play(text("roses"), text("nice"), text("violets"), text("nicer"))
    handle = await start("TwoModels")
    await handle.result()
    transcript = await handle.query(TRANSCRIPT_QUERY, result_type=Transcript)
    [poet] = transcript.others
    said = {one.label: [message.text for message in one.messages] for one in (transcript, poet)}
    assert said == {
        "critic": ["judge", "nice", "and now?", "nicer"],
        "poet": ["write", "roses", "more", "violets"],
    }
    [one_call] = {
        json.dumps(message.usage.model_dump()) for message in transcript.messages if message.usage is not None
    }
    for one in (transcript, poet):
        assert one.usage is not None
        assert one.usage.input_tokens == 2 * json.loads(one_call)["input_tokens"]


def test_the_agent_of_the_sdk_can_be_imported() -> None:
    from vercel_ai_sdk.agent import Agent  # noqa: PLC0415, it needs a library of its own

    assert callable(Agent.run)
