"""Conversations: follow-ups, several people at once, steering, stopping, continuing as new."""

import asyncio
import threading
import uuid
from typing import Any

import pytest
from standin import StandIn, hang, held, text, text_parts, tools
from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy

from options.conversation import ConversationState, UserMessage
from options.conversation_client import Start, ask, end, first_memo, say, status_of, stop, turn_under_way, view
from workflow import AgentAnswer, AgentRequest, AgentWorkflow

type Agent = WorkflowHandle[AgentWorkflow, AgentAnswer]


def starter(client: Client, id: str, message: UserMessage, queue: str = "tests", **options: Any) -> Start:
    async def start(state: ConversationState | None) -> Agent:
        request = AgentRequest(
            query=message.text, query_id=message.id, model="test/model", conversation=state, **options
        )
        return await client.start_workflow(
            AgentWorkflow.run,
            request,
            id=id,
            task_queue=queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            memo=await first_memo(None, message.text, state),
        )

    return start


class Talk:
    """A conversation of the test's own."""

    def __init__(self, client: Client, **options: Any) -> None:
        self.client, self.options, self.id = client, options, f"talk-{uuid.uuid4().hex[:8]}"
        self.handle = client.get_workflow_handle(self.id)

    def _message(self, text: str, id: str | None, steers: int | None) -> UserMessage:
        return UserMessage(id=id or uuid.uuid4().hex, text=text, steers=steers)

    async def ask(self, text: str, id: str | None = None, steers: int | None = None) -> str:
        message = self._message(text, id, steers)
        result = await ask(self.client, self.id, message, starter(self.client, self.id, message, **self.options))
        return f"{result.outcome}: {result.problem or result.text}"

    async def say(self, text: str, id: str | None = None, steers: int | None = None) -> None:
        message = self._message(text, id, steers)
        await say(self.client, self.id, message, starter(self.client, self.id, message, **self.options))


def prompts(standin: StandIn, call: int = -1) -> list[tuple[str, str]]:
    """The roles and texts of a request to the model, but for the system prompt."""
    prompt = [message for message in standin.calls[call].prompt if message["role"] != "system"]
    return [(m["role"], "".join(part.get("text", part["type"]) for part in m["content"])) for m in prompt]


@pytest.fixture
def talk(client: Client, queue: str, standin: StandIn) -> Talk:
    return Talk(client)


@pytest.fixture
def open_talk(client: Client, queue: str, standin: StandIn) -> Talk:
    return Talk(client, stay_open=True)


async def test_a_follow_up_knows_what_was_said(talk: Talk, standin: StandIn) -> None:
    standin.play(text("One."), text("Two."), text("Three."))
    assert [await talk.ask(question) for question in ("first?", "second?", "third?")] == [
        "answered: One.",
        "answered: Two.",
        "answered: Three.",
    ]
    assert prompts(standin) == [
        ("user", "first?"),
        ("assistant", "One."),
        ("user", "second?"),
        ("assistant", "Two."),
        ("user", "third?"),
    ]


async def test_an_open_conversation_has_one_run_and_waits_without_a_timer(open_talk: Talk, standin: StandIn) -> None:
    standin.play(text("One."), text("Two."))
    await open_talk.ask("first?")
    first = (await open_talk.handle.describe()).run_id
    await open_talk.ask("second?")
    assert (await open_talk.handle.describe()).run_id == first
    assert prompts(standin)[-1] == ("user", "second?")
    await end(open_talk.handle)
    await open_talk.handle.result()
    events = [event.WhichOneof("attributes") async for event in open_talk.handle.fetch_history_events()]
    assert not [event for event in events if event and "timer" in event]


async def test_a_message_steers_the_turn_under_way(talk: Talk, standin: StandIn) -> None:
    release = threading.Event()
    standin.play(held(release, tools(("c1", "get_weather", {"city": "Tokyo"}))), text("In Celsius."))
    first = asyncio.create_task(talk.ask("weather in Tokyo"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    await talk.say("in Celsius, please", steers=await turn_under_way(talk.handle))
    release.set()
    assert await first == "answered: In Celsius."
    assert [role for role, _ in prompts(standin)] == ["user", "assistant", "tool", "user"]
    assert prompts(standin)[-1] == ("user", "in Celsius, please")
    standin.play(text("Yes."))
    await talk.ask("still there?")
    assert [role for role, _ in prompts(standin)] == ["user", "assistant", "tool", "user", "assistant", "user"]


async def test_a_stopped_turn_keeps_its_text_and_the_conversation_goes_on(open_talk: Talk, standin: StandIn) -> None:
    shown = hang(*text_parts("Half an ans")[:-1])
    standin.play(shown)
    first = asyncio.create_task(open_talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    await asyncio.sleep(0.5)
    assert await stop(open_talk.handle) == 1
    assert await first == "stopped: Half an ans"
    await asyncio.to_thread(standin.calls[0].closed.wait, 10)
    assert not (await status_of(await open_talk.handle.describe())).working
    standin.play(text("Two."))
    assert await open_talk.ask("second?") == "answered: Two."
    assert prompts(standin) == [("user", "first?"), ("assistant", "Half an ans"), ("user", "second?")]
    seen = await view(open_talk.handle)
    assert [(turn.number, turn.outcome, len(turn.messages)) for turn in seen.turns] == [
        (1, "stopped", 2),
        (2, "answered", 2),
    ]
