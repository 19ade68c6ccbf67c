"""A conversation over many runs: what was said is carried over, and nobody notices."""

import asyncio
from itertools import pairwise

import pytest
from conftest import Forgetful, StartServer, make_worker
from standin import Call, StandIn, parts, text, tools
from starlette.responses import Response
from temporalio.client import Client
from test_conversation import Talk, prompts

from app import demo, devserver
from app.demo import finish
from options.conversation import MEMO, Status
from options.conversation_client import status_of, view
from options.gateway import GatewayModel
from plugin import DurableAgents
from workflow_types import AgentRequest


def reply(call: Call) -> Response:
    """Answers the last question. A question with a number that three divides takes three tool calls in a row."""
    [*_, last] = [i for i, message in enumerate(call.prompt) if message["role"] == "user"]
    question = call.prompt[last]["content"][0]["text"]
    done = len(call.prompt[last:]) // 2
    if int(question.split()[-1]) % 3 == 0 and done < 3:
        answer = tools((f"{question} {done}", "get_population", {"city": "Tokyo"}))(call)
    else:
        answer = text(f"answer to {question}")(call)
    assert isinstance(answer, Response)
    return answer


@pytest.mark.filterwarnings("error::temporalio.workflow.UnfinishedUpdateHandlersWarning")
async def test_turns_go_on_over_many_runs(start_server: StartServer, standin: StandIn) -> None:
    settings = ["limit.historyCount.suggestContinueAsNew=40", 'history.workflowIdReuseMinimalInterval="0s"']
    _, address = start_server(
        *devserver.FAST, *(part for each in settings for part in ("--dynamic-config-value", each))
    )
    client = await Client.connect(address, plugins=[DurableAgents(GatewayModel)])
    talk = Talk(client, stay_open=True)
    standin.play(*[reply] * 100)

    async def ask_in_turn(who: str, count: int) -> list[str]:
        return [await talk.ask(f"{who} {n}", f"{who}-{n}") for n in range(1, count + 1)]

    async def say_at_once(who: str, count: int) -> None:
        for n in range(1, count + 1):
            await talk.say(f"{who} {n}", f"{who}-{n}")

    async with make_worker(client, "tests"):
        assert await talk.ask("a 1", "a-1") == "answered: answer to a 1"
        async with asyncio.timeout(60):
            *asked, _ = await asyncio.gather(ask_in_turn("a", 12), ask_in_turn("b", 12), say_at_once("c", 6))
            assert asked == [[f"answered: answer to {who} {n}" for n in range(1, 13)] for who in ("a", "b")]
            assert await talk.ask("c 6", "c-6") == "answered: answer to c 6"
        seen = await view(talk.handle)

    # Nothing lost, nothing twice, nothing out of order.
    questions = [turn.messages[0].text for turn in seen.turns]
    assert [turn.number for turn in seen.turns] == list(range(1, 31))
    assert {turn.outcome for turn in seen.turns} == {"answered"}
    for who, count in [("a", 12), ("b", 12), ("c", 6)]:
        assert [each for each in questions if each.startswith(who)] == [f"{who} {n}" for n in range(1, count + 1)]
    assert [said for role, said in prompts(standin) if role == "user"] == questions
    assert (len(standin.calls), len(standin.lookups)) == (30 + 3 * 10, 3 * 10)

    # The runs: some were continued between two turns, some in the middle of one, and each told what it did at once.
    statuses, told, in_a_turn, timers = [], set[str](), 0, 0
    description = (await talk.handle.describe()).raw_description
    run_id: str | None = description.workflow_execution_info.first_run_id
    while run_id:
        history = await client.get_workflow_handle(talk.id, run_id=run_id).fetch_history()
        started = history.events[0].workflow_execution_started_event_attributes
        [request] = await client.data_converter.decode(started.input.payloads, [AgentRequest])
        statuses += await client.data_converter.decode([started.memo.fields[MEMO]], [Status])
        in_a_turn += bool(request.carried and request.carried.state)
        for event in history.events:
            timers += event.HasField("timer_started_event_attributes")
            changed = event.workflow_properties_modified_event_attributes.upserted_memo.fields
            payloads = [payload for key, payload in changed.items() if key == MEMO]
            for status in await client.data_converter.decode(payloads, [Status] * len(payloads)):
                told.update(status.answered)
        run_id = history.events[-1].workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    assert 0 < in_a_turn < len(statuses) - 1
    turns = [status.turn for status in statuses]
    assert turns == sorted(turns)
    assert turns[-1] > 20
    # Each answer is told to those who follow the history, also where another message waited while the run continued.
    assert told == {message.id for turn in seen.turns for message in turn.messages if message.role == "user"}
    assert len(statuses) > 5
    assert timers == 0
    last = Status(turn=30, working=False, answered=[seen.turns[-1].messages[0].id])
    assert await status_of(await talk.handle.describe()) == last


@pytest.mark.parametrize("way", ["in memory", "by query"])
async def test_earlier_turns_come_to_the_model_as_they_were(
    client: Client, queue: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Their JSON is made only once."""
    if way == "by query":
        monkeypatch.setattr("bridge.transcript._cached", Forgetful())
    talk = Talk(client, stay_open=True)
    signed = {"anthropic": {"signature": "s1"}}
    thought: list[demo.Part] = [
        {"type": "reasoning-start", "id": "r"},
        {"type": "reasoning-delta", "id": "r", "delta": 'Hm\u2028m"m'},
        {"type": "reasoning-end", "id": "r", "providerMetadata": signed},
    ]
    look_up = demo.tool_call("c1", "get_population", {"city": "São Paulo"})
    standin.play(
        parts(*thought, *look_up, finish("tool-calls")), text("Öne.", " \U0001f600"), text("Two."), text("Three.")
    )
    for question in ("first? ü", "second?", "third?"):
        await talk.ask(question)
    prompts = [call.prompt for call in standin.calls]
    for earlier, later in pairwise(prompts):
        assert later[: len(earlier)] == earlier
    assert [piece["type"] for piece in prompts[3][2]["content"]] == ["reasoning", "tool-call"]
    assert prompts[3][2]["content"][0] == {"type": "reasoning", "text": 'Hm\u2028m"m', "providerOptions": signed}
    assert prompts[3][3]["content"][0]["output"]["value"]["population"] == 12_400_232
    assert [message["content"][0].get("text") for message in prompts[3][4:]] == [
        "Öne. \U0001f600",
        "second?",
        "Two.",
        "third?",
    ]
