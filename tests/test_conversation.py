"""Conversations: follow-ups, several people at once, steering, stopping, continuing as new."""

import asyncio
import re
import threading
import uuid
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import pytest
from conftest import RunMain, make_worker
from pydantic_core import from_json
from standin import Call, StandIn, hang, held, status, text, text_parts, tools
from starlette.responses import JSONResponse, Response
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy

from bridge.watching import watch
from bridge.wire import text_of
from options.approvals import open_questions
from options.conversation import STOP, ConversationState, UserMessage
from options.conversation_client import Start, ask, end, first_memo, say, status_of, stop, turn_under_way, view
from workflow import AgentWorkflow
from workflow_types import AgentAnswer, AgentRequest

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


async def signals(handle: WorkflowHandle[Any, Any], number: int) -> None:
    """Wait until a run has had so many signals."""
    async for event in handle.fetch_history_events(wait_new_event=True):
        number -= event.HasField("workflow_execution_signaled_event_attributes")
        if number <= 0:
            return


async def shown(handle: WorkflowHandle[Any, Any], text: str) -> None:
    """Wait until the live text of a run is this."""
    await watch(handle)
    while True:
        for pending in (await handle.describe()).raw_description.pending_activities:
            for payload in pending.heartbeat_details.payloads:
                if from_json(payload.data)["text"] == text:
                    return


async def asked(handle: WorkflowHandle[Any, Any]) -> None:
    """Wait until a run asks for an approval."""
    async for event in handle.fetch_history_events(wait_new_event=True):
        changed = event.HasField("workflow_properties_modified_event_attributes")
        if changed and open_questions(await (await handle.describe()).memo()):
            return


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
    standin.play(hang(*text_parts("Half an ans")[:-1]))
    first = asyncio.create_task(open_talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    await shown(open_talk.handle, "Half an ans")
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


async def test_a_stop_does_not_wait_for_the_next_heartbeat(
    open_talk: Talk, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.heartbeats.BEATS_PER_TIMEOUT", 0.5)  # none in the next 16 seconds
    standin.play(hang())
    first = asyncio.create_task(open_talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    await stop(open_talk.handle)
    assert await asyncio.to_thread(standin.calls[0].closed.wait, 5)
    assert await first == "stopped: "


async def test_nor_does_a_tool(open_talk: Talk, standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.heartbeats.BEATS_PER_TIMEOUT", 0.5)
    lookups = list[Call]()

    def lookup(call: Call) -> Response | Awaitable[Response]:
        lookups.append(call)
        return hang()(call)

    standin.geocoding = lookup
    standin.play(tools(("c1", "get_population", {"city": "Tokyo"})))
    first = asyncio.create_task(open_talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, lookups=1)
    await stop(open_talk.handle)
    assert await asyncio.to_thread(lookups[0].closed.wait, 5)
    assert await first == "stopped: "


async def test_the_status_and_the_title_outlive_a_run_that_continues_as_new(
    open_talk: Talk, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("options.continuing.HISTORY_LIMIT", 10)  # after each turn, also with a message that waits
    release = threading.Event()
    standin.play(held(release, text("One.")), text("Two."), text("Three."), text("Four."))
    for question in ("first?", "second?", "third?"):
        await open_talk.say(question)
    release.set()
    assert await open_talk.ask("fourth?") == "answered: Four."
    async with asyncio.timeout(20):
        while (description := await open_talk.handle.describe()).history_length > 10:  # it is about to continue
            pass
    assert description.raw_description.workflow_execution_info.first_run_id != description.run_id
    status = await status_of(description)
    assert (status.turn, status.working, len(status.answered)) == (4, False, 1)
    assert (await description.memo())["title"] == "first?"


async def test_two_who_ask_at_once_get_the_answers_to_theirs(open_talk: Talk, standin: StandIn) -> None:
    standin.play(text("Hello."))
    await open_talk.ask("hello?")

    def echo(call: Call) -> Response | Awaitable[Response]:
        return text(f"re {call.prompt[-1]['content'][0]['text']}")(call)

    standin.play(*[echo] * 5)
    questions = [f"question {i}" for i in range(5)]
    assert await asyncio.gather(*map(open_talk.ask, questions)) == [f"answered: re {each}" for each in questions]
    said = [words for role, words in prompts(standin) if role == "user"]
    assert sorted(said[1:]) == questions
    answers = [words for role, words in prompts(standin) if role == "assistant"]
    assert answers[1:] == [f"re {words}" for words in said[1:-1]]


async def test_a_message_counts_once_however_often_it_is_sent(talk: Talk, open_talk: Talk, standin: StandIn) -> None:
    for conversation in (talk, open_talk):
        standin.play(text("One."), text("Two."))
        assert await conversation.ask("first?", id="m1") == "answered: One."
        assert await asyncio.gather(*(conversation.ask("second?", id="m2") for _ in range(3))) == ["answered: Two."] * 3
        await conversation.say("first?", id="m1")
        assert await conversation.ask("first?", id="m1") == "answered: One."
        turns = (await view(conversation.handle)).turns
        assert [text_of(turn.messages[0]) for turn in turns] == ["first?", "second?"]


async def test_a_message_that_comes_too_late_to_steer_gets_a_turn_of_its_own(talk: Talk, standin: StandIn) -> None:
    release = threading.Event()
    standin.play(held(release, text("One.")), text("Two."))
    first = asyncio.create_task(talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    second = asyncio.create_task(talk.ask("too late", steers=await turn_under_way(talk.handle)))
    await signals(talk.handle, 1)
    release.set()
    assert await first == "answered: One."
    assert await second == "answered: Two."
    assert prompts(standin)[-1] == ("user", "too late")


async def test_a_failed_turn_leaves_an_open_conversation_usable(open_talk: Talk, standin: StandIn) -> None:
    standin.play(status(400, message="no good"), text("Two."))
    assert await open_talk.ask("first?") == "failed: HTTP 400: no good"
    assert (await status_of(await open_talk.handle.describe())).outcome == "failed"
    assert await open_talk.ask("second?") == "answered: Two."
    assert prompts(standin) == [("user", "first?"), ("user", "second?")]


async def test_a_failure_ends_a_run_only_when_nothing_else_waits(talk: Talk, standin: StandIn) -> None:
    release = threading.Event()
    standin.play(held(release, status(400, message="no good")), text("Two."))
    first = asyncio.create_task(talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    second = asyncio.create_task(talk.ask("second?"))
    await signals(talk.handle, 1)
    release.set()
    assert [await first, await second] == ["failed: HTTP 400: no good", "answered: Two."]
    standin.play(status(400, message="no good"), text("Four."))
    await talk.say("third?")
    with pytest.raises(WorkflowFailureError):
        await talk.handle.result()
    assert await talk.ask("fourth?") == "answered: Four."
    assert prompts(standin)[-3:] == [("assistant", "Two."), ("user", "third?"), ("user", "fourth?")]


async def test_a_run_that_was_ended_from_outside_is_gone_on_with(talk: Talk, standin: StandIn) -> None:
    standin.play(text("One."), tools(("c1", "get_weather", {"city": "Tokyo"})), hang(), text("Three."))
    await talk.ask("first?")
    await talk.say("second?")
    await asyncio.to_thread(standin.wait_for, calls=3)
    await talk.handle.terminate()
    assert await talk.ask("third?") == "answered: Three."
    assert prompts(standin)[:3] == [("user", "first?"), ("assistant", "One."), ("user", "second?")]
    assert [role for role, _ in prompts(standin)[3:]] == ["assistant", "tool", "user"]


async def test_a_stop_cancels_tools_and_questions(open_talk: Talk, standin: StandIn) -> None:
    release = threading.Event()
    standin.geocoding = held(release, lambda call: JSONResponse({"results": []}))
    standin.play(tools(("c1", "get_weather", {"city": "Tokyo"})), text("Two."))
    first = asyncio.create_task(open_talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, lookups=1)
    await stop(open_talk.handle)
    assert await first == "stopped: "
    release.set()
    assert await open_talk.ask("second?") == "answered: Two."
    [result] = standin.calls[-1].tool_results
    assert "stopped before it was done" in str(result["output"])
    seen = [event async for event in open_talk.handle.fetch_history_events()]
    assert any(event.HasField("activity_task_cancel_requested_event_attributes") for event in seen)


async def test_a_stop_takes_away_the_questions_of_the_turn(client: Client, queue: str, standin: StandIn) -> None:
    talk = Talk(client, stay_open=True, approve=True)
    standin.play(tools(("c1", "get_weather", {"city": "Tokyo"})), text("Two."))
    first = asyncio.create_task(talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    await asked(talk.handle)
    await stop(talk.handle)
    assert await first == "stopped: "
    assert not open_questions(await (await talk.handle.describe()).memo())
    assert await talk.ask("second?") == "answered: Two."


async def test_an_idle_limit_ends_the_conversation_and_the_next_message_goes_on(
    client: Client, queue: str, standin: StandIn
) -> None:
    talk = Talk(client, stay_open=True, idle_limit=timedelta(seconds=1))
    standin.play(text("One."), text("Two."))
    await talk.ask("first?")
    assert (await asyncio.wait_for(talk.handle.result(), 30))["text"] == "One."
    assert await talk.ask("second?") == "answered: Two."
    assert prompts(standin)[0] == ("user", "first?")


async def test_an_end_waits_for_what_was_asked(open_talk: Talk, standin: StandIn) -> None:
    release = threading.Event()
    standin.play(held(release, text("One.")), text("Two."))
    first = asyncio.create_task(open_talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    second = asyncio.create_task(open_talk.ask("second?"))
    await signals(open_talk.handle, 1)
    await end(open_talk.handle)
    release.set()
    assert [await first, await second] == ["answered: One.", "answered: Two."]
    assert (await open_talk.handle.result())["text"] == "Two."
    standin.play(text("Three."))
    assert await open_talk.ask("third?") == "answered: Three."
    assert not (await status_of(await open_talk.handle.describe())).working  # it is open again
    assert (await open_talk.handle.describe()).status == WorkflowExecutionStatus.RUNNING


async def test_the_list_says_what_waits_for_whom_without_a_worker(
    client: Client, queue: str, standin: StandIn, run_main: RunMain
) -> None:
    waits, over, failed, ended, works, asks = (
        Talk(client, stay_open=True),
        *(Talk(client) for _ in range(4)),
        Talk(client, stay_open=True, approve=True),
    )
    standin.play(
        text("One."), text("One."), status(400), hang(), hang(), tools(("c1", "get_weather", {"city": "Rome"}))
    )
    await waits.ask("how are\nyou?")
    await over.ask("and tomorrow?")
    await failed.say("why?")
    with pytest.raises(WorkflowFailureError):
        await failed.handle.result()
    await ended.say("when?")
    await asyncio.to_thread(standin.wait_for, calls=4)
    await ended.handle.terminate()
    await works.say("who?")
    await asyncio.to_thread(standin.wait_for, calls=5)
    await asks.say("where?")
    await asked(asks.handle)
    expected = {
        waits.id: ["waits for your message", "how are you?"],
        over.id: ["is over", "and tomorrow?"],
        failed.id: ["failed", "why?"],
        ended.id: ["terminated", "when?"],
        works.id: ["works", "who?"],
        asks.id: ["waits for your answer", 'where?: get_weather(city="Rome")'],
    }
    listed: dict[str, list[str]] = {}
    async with asyncio.timeout(30):  # visibility is a moment late
        while {id: listed.get(id) for id in expected} != expected:
            result = await asyncio.to_thread(run_main, "--list")
            assert (result.returncode, result.stderr) == (0, "")
            rows = [re.split("  +", line) for line in result.stdout.splitlines()]
            listed = {id: rest for id, *rest in rows}


async def first_request(client: Client, id: str) -> AgentRequest:
    """The input of the latest run."""
    async for event in client.get_workflow_handle(id).fetch_history_events():
        payloads = event.workflow_execution_started_event_attributes.input.payloads
        request: AgentRequest = (await client.data_converter.decode(payloads, [AgentRequest]))[0]
        return request
    raise AssertionError


async def test_a_stop_may_come_before_a_worker_takes_the_run_up(client: Client, standin: StandIn) -> None:
    talk = Talk(client, queue=uuid.uuid4().hex, stay_open=True)
    standin.play(text("Two."))
    await talk.say("first?")
    assert await stop(talk.handle) == 1
    async with make_worker(client, talk.options["queue"]):
        assert await talk.ask("second?") == "answered: Two."
        assert [turn.outcome for turn in (await view(talk.handle)).turns] == ["stopped", "answered"]
    assert len(standin.calls) == 1


async def test_a_stop_may_come_while_a_run_continues_as_new(
    client: Client, open_talk: Talk, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("options.continuing.HISTORY_LIMIT", 5)
    standin.play(tools(("c1", "get_population", {"city": "Tokyo"})), hang())
    await open_talk.say("first?")
    await asyncio.to_thread(standin.wait_for, calls=2)  # the second one by the second run
    # Another run of the same input, for which there is no worker yet.
    again = Talk(client, queue=uuid.uuid4().hex)
    request = await first_request(client, open_talk.id)
    await open_talk.handle.terminate()
    await client.start_workflow(AgentWorkflow.run, request, id=again.id, task_queue=again.options["queue"])
    await again.handle.signal(STOP, 1)
    standin.play(text("Two."))
    async with make_worker(client, again.options["queue"]):
        assert await again.ask("second?") == "answered: Two."
    assert [role for role, _ in prompts(standin)] == ["user", "assistant", "tool", "user"]
    assert len(standin.calls) == 3


async def test_a_run_that_is_cancelled_makes_no_other_call(
    open_talk: Talk, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.heartbeats.BEATS_PER_TIMEOUT", 0.5)  # the call does not know of it in time
    release = threading.Event()
    standin.play(held(release, tools(("c1", "get_weather", {"city": "Tokyo"}))), *[text("Never.")] * 10)
    first = asyncio.create_task(open_talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    await open_talk.handle.cancel()
    async for event in open_talk.handle.fetch_history_events(wait_new_event=True):
        if event.HasField("activity_task_cancel_requested_event_attributes"):
            break
    release.set()
    with pytest.raises(WorkflowFailureError):
        await open_talk.handle.result()
    assert (await open_talk.handle.describe()).status == WorkflowExecutionStatus.CANCELED
    assert await first == "stopped: "
    assert (len(standin.calls), standin.lookups) == (1, [])


async def test_who_waits_is_not_lost_when_the_run_is_ended_from_outside(open_talk: Talk, standin: StandIn) -> None:
    standin.play(hang(), text("Two."))
    first = asyncio.create_task(open_talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    second = asyncio.create_task(open_talk.ask("second?"))
    await signals(open_talk.handle, 1)
    await open_talk.handle.terminate()
    async with asyncio.timeout(30):
        assert [await first, await second] == ["stopped: ", "answered: Two."]
    assert prompts(standin) == [("user", "first?"), ("user", "second?")]


async def test_half_an_answer_may_end_in_the_middle_of_a_letter(open_talk: Talk, standin: StandIn) -> None:
    standin.play(hang(*text_parts("Half \ud83d")[:-1]))
    first = asyncio.create_task(open_talk.ask("first?"))
    await asyncio.to_thread(standin.wait_for, calls=1)
    await shown(open_talk.handle, "Half \ufffd")
    await stop(open_talk.handle)
    assert await first == "stopped: Half \ufffd"


async def test_a_message_may_have_the_id_of_an_answer(open_talk: Talk, standin: StandIn) -> None:
    standin.play(text("One."), text("Two."), text("Three."))
    await open_talk.ask("first?")
    taken = (await view(open_talk.handle)).turns[0].messages[1].id
    assert await open_talk.ask("second?", taken) == "answered: Two."
    assert await open_talk.ask("third?") == "answered: Three."
    assert [words for _, words in prompts(standin)] == ["first?", "One.", "second?", "Two.", "third?"]
    turns = (await view(open_talk.handle)).turns
    assert [(turn.number, text_of(turn.messages[-1])) for turn in turns] == [(1, "One."), (2, "Two."), (3, "Three.")]


async def test_a_turn_that_no_query_can_answer_with_is_seen_in_part(open_talk: Talk, standin: StandIn) -> None:
    long = tools(("c1", "get_population", {"city": "Tokyo", "more": "y" * 1_000_000}))
    standin.play(long, long, long, text("One."))
    assert await open_talk.ask("first?") == "answered: One."
    [turn] = (await view(open_talk.handle)).turns
    assert (text_of(turn.messages[0]), turn.result.text) == ("first?", "One.")
    assert 2 < len(turn.messages) < 5


async def test_an_answer_that_no_query_can_give_is_asked_for_again(talk: Talk, standin: StandIn) -> None:
    long = "y" * 1_200_000
    standin.play(text("One." + long), text("Two." + long))
    assert await talk.ask("first?", "m1") == "answered: One." + long
    assert await talk.ask("second?") == "answered: Two." + long
    async with asyncio.timeout(30):
        await talk.handle.result()
        assert await talk.ask("first?", "m1") == "answered: One." + long
    assert len(standin.calls) == 2
