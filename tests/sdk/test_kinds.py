"""Each kind of loop of the SDK, plain and durable: the same messages, the same requests to the model, and replayed.

| kind                              | loop                 | what is special                                          |
|-----------------------------------|----------------------|----------------------------------------------------------|
| the SDK's own loop                | simple               | a system prompt, tools at once, arguments that do not fit|
| a loop of one's own               | custom               | one tool call after the other, a last turn without tools |
|                                   | agent of workflow.py | in tests/test_durable.py                                 |
| agents at once in one `ai.run()`  | parallel             | labels                                                   |
| an `ai.run()` for each agent      | TwoAgentsWorkflow    | in tests/test_durable.py                                 |
| structured output                 | structured           | after tool calls; used by the loop                       |
| pictures in and out               | pictures             | bytes, an address, one of the model sent back            |
| a tool that yields messages       | streaming_tool       | unwrapped                                                |
| a tool that takes an `ai.Runtime` | runtime_tool         | unwrapped, beside one that is an activity                |
| an agent as a tool                | agent_as_tool        | unwrapped, in the same `ai.run()` and in one of its own  |
| a step that is no model call      | own_step             | `ai.stream`                                              |
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import kinds
import pytest
import vercel_ai_sdk as ai
from standin import Call, Reply, StandIn, parts, text, text_parts
from standin import tools as calls
from starlette.responses import Response
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer, Worker

from app.demo import finish
from options.gateway import GatewayModel
from plugin import DurableAgents

LEGS = {"legs": [{"start": "a", "end": "b"}]}
COUNT = calls(("1", "count_legs", LEGS), ("2", "count_legs", {"legs": 7}), ("3", "keep_quiet", {}))
PICTURE = {"type": "file", "mediaType": "image/png", "data": "aGVsbG8="}

# The model's answers: by the user's first words, and, in each conversation, one after the other.
SCRIPTS: dict[str, list[Reply]] = {
    "simple": [COUNT, calls(("4", "count_legs", {"legs": []})), text("sim", "ple")],
    "custom": [COUNT, calls(("4", "count_legs", {"legs": []})), text("in short")],
    "north": [calls(("n", "count_legs", LEGS)), text("cold")],
    "south": [calls(("s", "count_legs", LEGS), ("t", "count_legs", LEGS)), text("warm")],
    "sum up": [text("all kinds")],
    "structured": [text('{"good": true, ', '"reasons": ["a", "b"]}')],
    "why True": [text("because")],
    "pictures": [parts(PICTURE, *text_parts("here"), finish("stop", 3, 4)), text("a cat")],
    "streaming tool": [calls(("1", "narrate", {"about": "king"})), text("the end")],
    "runtime tool": [
        calls(("1", "report_progress", {"steps": 3}), ("2", "announce", {}), ("3", "count_legs", LEGS)),
        text("done"),
    ],
    "agent as a tool": [
        calls(("1", "ask_expert", {"question": "how"}), ("2", "ask_expert_apart", {"question": "when"})),
        text("I see"),
    ],
    "how": [calls(("h", "count_legs", LEGS)), text("like this")],
    "when": [calls(("w", "count_legs", LEGS)), text("soon")],
    "after": [text("thank you")],
}

LABELS = {
    "simple": {"simple"},
    "custom": {"first", "second", "last"},
    "parallel": {"north", "south", "sum"},
    "structured": {"judge", "defend"},
    "pictures": {"draw", "look"},
    "streaming_tool": {"caller", "story"},
    "runtime_tool": {"main", "progress", "herald"},
    "agent_as_tool": {"main", "expert for how"},
    "own_step": {"greeting", "after"},
}


class Scripted:
    """Answers by what is said, whatever the order in which agents ask that are at work at once."""

    def __init__(self, standin: StandIn) -> None:
        self._standin = standin
        standin.play(*[self._answer] * 50)

    async def _answer(self, call: Call) -> Response:
        [script] = [SCRIPTS[words] for words in SCRIPTS if call.query.startswith(words)]
        reply = script[sum(message["role"] == "assistant" for message in call.prompt)](call)
        return reply if isinstance(reply, Response) else await reply

    def taken(self) -> list[dict[str, Any]]:
        """The requests so far, those of each conversation together."""
        bodies = sorted((call.query, len(call.prompt), call.body) for call in self._standin.calls)
        self._standin.calls.clear()
        return [body for _, _, body in bodies]


@pytest.fixture
def scripted(standin: StandIn) -> Scripted:
    return Scripted(standin)


@pytest.fixture(params=[1000, 0], ids=["cached", "uncached"])
async def loop_queue(client: Client, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A task queue with a worker that keeps its runs, or one that replays each of them for every task."""
    queue = uuid.uuid4().hex
    async with Worker(client, task_queue=queue, workflows=[kinds.LoopWorkflow], max_cached_workflows=request.param):
        yield queue


async def durable(client: Client, queue: str, loop: str) -> tuple[list[ai.Message], WorkflowHistory]:
    handle = await client.start_workflow(kinds.LoopWorkflow.run, loop, id=uuid.uuid4().hex, task_queue=queue)
    async with asyncio.timeout(60):
        messages = await handle.result()
    return messages, await handle.fetch_history()


def dumped(messages: list[ai.Message], loop: str) -> list[dict[str, Any]]:
    """The messages in their order. Agents at work at once may take turns in any way: so theirs are taken apart."""
    if loop in ("parallel", "agent_as_tool"):
        messages = sorted(messages, key=lambda message: message.label or "")
    return [message.model_dump(exclude={"id"}) for message in messages]


@pytest.mark.parametrize("loop", kinds.LOOPS)
async def test_a_loop_does_the_same_with_and_without_temporal(
    client: Client, loop_queue: str, scripted: Scripted, loop: str
) -> None:
    plain = await kinds.transcript(loop, lambda: GatewayModel("test/model"))
    requests = scripted.taken()
    messages, history = await durable(client, loop_queue, loop)
    assert dumped(messages, loop) == dumped(plain, loop)
    assert scripted.taken() == requests
    assert {message.label for message in plain} == LABELS[loop]
    assert not any(event.HasField("timer_started_event_attributes") for event in history.events)
    replayer = Replayer(workflows=[kinds.LoopWorkflow], plugins=[DurableAgents()])
    await replayer.replay_workflow(history)
