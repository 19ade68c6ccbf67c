"""A person is asked before a tool is called: in the terminal, from anywhere else, and for as long as it takes."""

import asyncio
import gc
import operator
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import agents
import pytest
import toolbox
from conftest import ROOT, OpenTerminal, RunMain, StartAgent, StartMain, make_worker
from processes import kill, line_with
from standin import Reply, StandIn, hang, held, text
from standin import json as json_reply
from standin import tools as calls
from temporalio.api.enums.v1 import EventType
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.worker import Replayer, Worker
from terminal import Terminal

from app import command_line
from options.approvals import APPROVAL, Approval, ask_a_person, ask_a_person_if, open_questions
from plugin import DurableAgents
from workflow import AgentWorkflow
from workflow_types import AgentRequest

PROMPT = "Allow it? (y, or n and why)"
TOKYO, PARIS = ("a", "get_weather", {"city": "Tokyo"}), ("b", "get_weather", {"city": "Paris"})
ASKED = {city: f'? get_weather(city="{city}") waits for an approval' for city in ("Tokyo", "Paris")}

ANSWERS_A_RUN = "--yes, --no and --resolve answer a question of a run: they take its --id and no query"

type Pay = Callable[..., Awaitable[WorkflowHandle[Any, Any]]]
type Ask = Callable[..., Awaitable[tuple[Terminal, WorkflowHandle[Any, Any]]]]

pytestmark = pytest.mark.usefixtures("alone")


async def questions(handle: WorkflowHandle[Any, Any]) -> dict[str, str]:
    """The tool calls that wait for an approval, from where everybody can read them: summaries by call, sorted."""
    found: dict[str, str] = open_questions(await (await handle.describe()).memo())
    return dict(sorted(found.items(), key=operator.itemgetter(1)))


async def until_asked(handle: WorkflowHandle[Any, Any], *words: str) -> dict[str, str]:
    """Wait until a run asks exactly the questions with these words in them."""
    async with asyncio.timeout(60):
        async for _ in handle.fetch_history_events(wait_new_event=True):
            found = await questions(handle)
            if len(found) == len(words) and all(map(operator.contains, found.values(), words)):
                return found
    raise AssertionError("the run is over")


async def answer(handle: WorkflowHandle[Any, Any], call: str, approved: bool, reason: str = "") -> Any:
    return await handle.execute_update(APPROVAL, Approval(call=call, approved=approved, reason=reason))


async def event_types(handle: WorkflowHandle[Any, Any]) -> list[int]:
    return [event.event_type for event in (await handle.fetch_history()).events]


def prompt(city: str) -> str:
    """The question in a terminal, when it can be answered."""
    return f"{ASKED[city]}\n    {PROMPT}"


def results(standin: StandIn) -> list[Any]:
    """What the model was told of its tool calls, in its latest request."""
    return [result["output"]["value"] for result in standin.calls[-1].tool_results]


# ── The bridge ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def guarded(client: Client, queue: str, standin: StandIn) -> WorkflowHandle[Any, Any]:
    """A run that calls a tool which needs no approval, and then waits for one of another tool twice."""
    doors = [(door, "open_door", {"door": door}) for door in ("front", "back")]
    standin.play(calls(("0", "count_legs", {"legs": []})), calls(*doors), text("the answer"))
    handle = await client.start_workflow(agents.AnswerWorkflow.run, "go", id=uuid.uuid4().hex, task_queue=queue)
    toolbox.OPENED.clear()
    return handle


async def test_a_single_tool_can_need_approval(guarded: WorkflowHandle[Any, Any], standin: StandIn) -> None:
    waiting = await until_asked(guarded, "back", "front")
    assert [*waiting.values()] == ['open_door(door="back")', 'open_door(door="front")']
    back, front = waiting
    assert toolbox.OPENED == []
    metadata = await guarded.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    assert f'- waiting for an approval ({front}): open_door(door="front")' in metadata.current_details
    assert await answer(guarded, back, True) == 'open_door(door="back")'
    assert await until_asked(guarded, "front") == {front: 'open_door(door="front")'}
    await answer(guarded, front, False, "the dog is there")
    assert await guarded.result() == "the answer"
    assert toolbox.OPENED == ["back"]
    counted, refused, opened = results(standin)
    assert counted["legs"] == 0
    assert refused == "ToolError: a person did not allow this call of open_door: the dog is there"
    assert opened == "back is open"
    assert await questions(guarded) == {}
    assert EventType.EVENT_TYPE_TIMER_STARTED not in await event_types(guarded)


async def test_an_answer_to_no_question_is_refused_and_leaves_no_trace(
    guarded: WorkflowHandle[Any, Any], standin: StandIn
) -> None:
    back, front = await until_asked(guarded, "back", "front")

    async def refused(call: str, why: str) -> None:
        with pytest.raises(WorkflowUpdateFailedError) as error:
            await answer(guarded, call, True)
        assert why in str(error.value.cause)

    before = await event_types(guarded)
    await refused("nonsense", "no tool call 'nonsense' waits for an approval")
    assert await event_types(guarded) == before
    await answer(guarded, front, False)
    await refused(front, f"tool call '{front}' is answered already")
    await answer(guarded, back, False)
    await guarded.result()
    assert toolbox.OPENED == []
    assert results(standin)[1:] == ["ToolError: a person did not allow this call of open_door: no reason given"] * 2


async def test_an_answer_before_the_first_question_is_told_that_nothing_waits(
    client: Client, queue: str, start_agent: StartAgent, standin: StandIn
) -> None:
    standin.play(hang())
    handle = await start_agent()
    await asyncio.to_thread(standin.wait_for, calls=1)
    with pytest.raises(WorkflowUpdateFailedError) as error:
        await answer(handle, "early", True)
    assert "no tool call 'early' waits for an approval" in str(error.value.cause)
    await handle.terminate()


async def test_a_question_that_the_loop_gives_up_is_no_longer_open(client: Client, queue: str) -> None:
    handle = await client.start_workflow(agents.HastyWorkflow.run, id=uuid.uuid4().hex, task_queue=queue)
    await handle.result()
    assert await questions(handle) == {}
    assert (await event_types(handle)).count(EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED) == 2


async def test_many_long_questions_at_once_are_no_problem(client: Client, queue: str, standin: StandIn) -> None:
    doors = [f"{number} {'x' * 10_000}" for number in range(50)]
    standin.play(calls(*((door, "open_door", {"door": door}) for door in doors)), text("the answer"))
    handle = await client.start_workflow(agents.AnswerWorkflow.run, "go", id=uuid.uuid4().hex, task_queue=queue)
    for call in await until_asked(handle, *sorted(f'open_door(door="{door[:1000]}' for door in doors)):
        await answer(handle, call, False)
    assert await handle.result() == "the answer"
    assert len(results(standin)) == 50
    assert (await handle.fetch_history()).to_json().count("upsertedMemo") == 100


async def test_without_approve_nobody_is_asked(start_agent: StartAgent, standin: StandIn) -> None:
    standin.play(calls(TOKYO), text("the answer"))
    handle = await start_agent()
    await handle.result()
    assert EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED not in await event_types(handle)


# ── Rules and time limits ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pay(client: Client, queue: str, standin: StandIn) -> Pay:
    """Start a run that calls these tools with these arguments at once, and then has this reply of the model."""

    async def start(*payments: tuple[str, dict[str, object]], then: Reply | None = None) -> WorkflowHandle[Any, Any]:
        toolbox.PAID.clear()
        called = [(str(number), name, arguments) for number, (name, arguments) in enumerate(payments)]
        standin.play(calls(*called), then or text("the answer"))
        return await client.start_workflow(agents.PayingWorkflow.run, id=uuid.uuid4().hex, task_queue=queue)

    return start


async def test_only_the_calls_that_a_rule_picks_wait_for_a_person(pay: Pay, standin: StandIn) -> None:
    handle = await pay(
        ("pay", {"amount": 100}),
        ("pay", {"amount": 101}),
        ("pay", {"amount": "102", "to": "the shop"}),  # the function would get a number, and so does the rule
        ("pay", {"amount": 1, "to": "a stranger"}),
    )
    waiting = await until_asked(handle, "102", "stranger", "101")
    assert toolbox.PAID in ([], [100])
    for call in waiting:
        await answer(handle, call, waiting[call] == "pay(amount=101)")
    assert await handle.result() == "the answer"
    no = "ToolError: a person did not allow this call of pay: no reason given"
    assert results(standin) == ["paid 100 to the shop", "paid 101 to the shop", no, no]
    assert sorted(toolbox.PAID) == [100, 101]
    assert EventType.EVENT_TYPE_TIMER_STARTED not in await event_types(handle)


async def test_a_question_that_nobody_answers_in_time_is_refused(client: Client, pay: Pay, standin: StandIn) -> None:
    release = threading.Event()
    handle = await pay(
        ("pay_soon", {"amount": 7}), ("pay_soon", {"amount": 500}), then=held(release, text("the answer"))
    )
    [call] = await until_asked(handle, "500")
    await asyncio.to_thread(standin.wait_for, calls=2)
    late = "ToolError: this call of pay_soon was not allowed: nobody answered within 0:00:02"
    assert results(standin) == ["paid 7", late]
    assert await questions(handle) == {}
    with pytest.raises(WorkflowUpdateFailedError) as error:
        await answer(handle, call, True)
    assert str(error.value.cause) == f"TooLate: tool call '{call}' was refused: nobody answered in time"
    release.set()
    assert await handle.result() == "the answer"
    assert toolbox.PAID == [7]
    assert (await event_types(handle)).count(EventType.EVENT_TYPE_TIMER_STARTED) == 1
    replayer = Replayer(workflows=[agents.PayingWorkflow], plugins=[DurableAgents()])
    await replayer.replay_workflow(await handle.fetch_history())


async def test_an_answer_in_time_stops_the_clock(pay: Pay, standin: StandIn) -> None:
    handle = await pay(("pay_soon", {"amount": 500}))
    [call] = await until_asked(handle, "500")
    await answer(handle, call, True)
    assert await handle.result() == "the answer"
    assert results(standin) == ["paid 500"]
    assert EventType.EVENT_TYPE_TIMER_CANCELED in await event_types(handle)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"amount": 0}, "ZeroDivisionError: division by zero"),
        ({"amount": 1}, "TypeError: it returned None, which is no bool"),
    ],
)
async def test_a_rule_that_fails_lets_no_call_through(
    pay: Pay, standin: StandIn, arguments: dict[str, object], problem: str
) -> None:
    handle = await pay(("pay_somehow", arguments))
    async with asyncio.timeout(30):
        assert await handle.result() == "the answer"
    told = f"ToolError: pay_somehow was not called, since the rule of its approval failed: {problem}"
    assert results(standin) == [told]
    assert toolbox.PAID == []


def test_rules_are_the_same_only_if_their_source_and_what_they_enclose_is() -> None:
    def made(much: int, timeout: timedelta | None = None) -> object:
        return ask_a_person_if(lambda amount: amount > much, timeout=timeout)

    assert made(1) == made(1)
    assert made(1) != made(2)
    assert made(1) != made(1, timedelta(hours=1))
    assert made(1) != ask_a_person_if(lambda amount: amount > 1)
    assert made(1) != ask_a_person


def test_a_rule_that_would_always_count_as_yes_is_no_rule() -> None:
    async def rule(amount: int) -> bool:
        return amount > 100

    with pytest.raises(TypeError, match="the rule of an approval is an async function"):
        ask_a_person_if(rule)  # type: ignore[arg-type]  # mypy sees it, too


async def test_a_terminal_stops_asking_when_the_time_is_over(
    client: Client, open_terminal: OpenTerminal, standin: StandIn
) -> None:
    standin.play(calls(("a", "pay_soon", {"amount": 500})), text("the answer"))
    worker = Worker(client, task_queue=command_line.TASK_QUEUE, workflows=[agents.HurriedWorkflow])
    async with worker:
        terminal = open_terminal("--no-worker", "Pay!", "--id", uuid.uuid4().hex)
        await asyncio.to_thread(terminal.wait_for, f"? pay_soon(amount=500) waits for an approval\n    {PROMPT}")
        await asyncio.to_thread(terminal.wait_for, f"{PROMPT} It was answered elsewhere, or too late.")
        assert (await asyncio.to_thread(terminal.finish))[0] == 0
    assert results(standin) == ["ToolError: this call of pay_soon was not allowed: nobody answered within 0:00:02"]


# ── In a terminal ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def ask(client: Client, open_terminal: OpenTerminal, standin: StandIn) -> AsyncIterator[Ask]:
    """With a worker here, start a run with these replies of the model, and wait until it asks about Tokyo."""

    async def ask(*turns: Reply, **options: Any) -> tuple[Terminal, WorkflowHandle[Any, Any]]:
        name = uuid.uuid4().hex
        standin.play(*turns, text("the answer"))
        terminal = open_terminal("--no-worker", "Weather?", "--id", name, "--approve", **options)
        await asyncio.to_thread(terminal.wait_for, prompt("Tokyo"), gone=["Paris"])
        return terminal, client.get_workflow_handle(name)

    async with make_worker(
        client, command_line.TASK_QUEUE, max_heartbeat_throttle_interval=timedelta(milliseconds=100)
    ):
        yield ask


async def test_the_questions_are_asked_one_after_the_other_and_answered_by_what_is_typed_then(
    ask: Ask, standin: StandIn
) -> None:
    terminal, handle = await ask(calls(TOKYO, PARIS))
    wait = asyncio.to_thread
    terminal.type("maybe\n")
    await wait(terminal.wait_for, f"{PROMPT} maybe\n    {PROMPT}")
    assert standin.lookups == []
    terminal.type("y\ny\n")  # the second one was typed before the question that it would answer
    await wait(terminal.wait_for, prompt("Paris"))
    terminal.type("n it is too far away\n")
    assert (await wait(terminal.finish))[0] == 0
    assert standin.lookups == ["Tokyo"]
    looked_up, refused = results(standin)
    assert looked_up["city"] == "Tokyo"
    assert refused == "ToolError: a person did not allow this call of get_weather: it is too far away"
    # Each question, each prompt and each result stands on a line of its own.
    lines = [line.strip() for line in terminal.scrolled if line]
    assert [line for line in lines if "?" in line] == [
        ASKED["Tokyo"],
        f"{PROMPT} maybe",
        f"{PROMPT} y",
        ASKED["Paris"],
        f"{PROMPT} n it is too far away",
    ]
    assert [line[0] for line in lines if "done in" in line] == ["✓"] * 3
    assert await questions(handle) == {}


async def test_what_is_done_while_a_question_is_open_does_not_disturb_it(ask: Ask, standin: StandIn) -> None:
    terminal, handle = await ask(calls(TOKYO, PARIS), size=(160, 24))
    # Somebody else allows both calls, and the first of them is done while the question about the second is open.
    paris, tokyo = await questions(handle)
    await answer(handle, tokyo, True)
    await asyncio.to_thread(terminal.wait_for, "It was answered elsewhere, or too late.", prompt("Paris"))
    done = 0
    async for event in handle.fetch_history_events(wait_new_event=True):
        done += event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
        if done == 2:  # the call of the model, and this one
            break
    await answer(handle, paris, True)
    assert (await asyncio.to_thread(terminal.finish))[0] == 0
    assert standin.lookups == ["Tokyo", "Paris"]
    lines = [line.strip() for line in terminal.scrolled if line]
    assert [line[0] for line in lines if "done in" in line] == ["✓"] * 4
    assert [line for line in lines if PROMPT in line] == [f"{PROMPT} It was answered elsewhere, or too late."] * 2


async def test_ctrl_d_is_no_answer(ask: Ask, standin: StandIn) -> None:
    terminal, _ = await ask(calls(TOKYO))
    terminal.type("\x04")
    await asyncio.to_thread(terminal.wait_for, f"{PROMPT}\n    {PROMPT}")
    terminal.type("half a line\x04\x04")
    await asyncio.to_thread(terminal.wait_for, f"{PROMPT} half a line\n    {PROMPT}")
    assert standin.lookups == []
    terminal.type("y\n")
    assert (await asyncio.to_thread(terminal.finish))[0] == 0
    assert standin.lookups == ["Tokyo"]


async def test_an_answer_that_comes_too_late_does_no_harm(ask: Ask, standin: StandIn) -> None:
    terminal, handle = await ask(calls(TOKYO), calls(PARIS))
    # Both answer at the same moment.
    terminal.process.send_signal(signal.SIGSTOP)
    [call] = await questions(handle)
    await answer(handle, call, True)
    terminal.type("n never\n")
    terminal.process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(terminal.wait_for, prompt("Paris"), seconds=20)
    terminal.type("y\n")
    assert (await asyncio.to_thread(terminal.finish))[0] == 0
    assert standin.lookups == ["Tokyo", "Paris"]


async def test_a_question_outlives_process_and_server_and_costs_nothing_meanwhile(
    folder: Path, start_main: StartMain, open_terminal: OpenTerminal, standin: StandIn
) -> None:
    async def history() -> list[int]:
        client = await Client.connect("localhost:7233", plugins=[DurableAgents()])
        return await event_types(client.get_workflow_handle("one"))

    standin.play(calls(TOKYO), text("the answer"))
    victim = start_main("Weather?", "--id", "one", "--approve", folder=folder, env=standin.environment)
    assert len(printed_commands(victim, 1)) == 2
    before = await history()
    os.kill(int((folder / ".temporal" / "server.pid").read_text()), signal.SIGKILL)
    victim.kill()
    terminal = open_terminal("--id", "one", folder=folder, env=standin.environment)
    terminal.wait_for(prompt("Tokyo"))
    assert await history() == before
    assert EventType.EVENT_TYPE_TIMER_STARTED not in before
    terminal.type("y\n")
    assert terminal.finish()[0] == 0
    terminal.wait_for("the answer")
    assert (standin.lookups, len(standin.calls)) == (["Tokyo"], 2)


# ── From anywhere else ───────────────────────────────────────────────────────────────────────────────────


def printed_commands(process: subprocess.Popen[str], questions: int) -> list[str]:
    """The commands that answer the questions, `--yes` and `--no` for each."""
    return [line_with(process, f" --{word} ").strip() for _ in range(questions) for word in ("yes", "no")]


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on the PATH")
def test_without_a_terminal_the_question_comes_with_the_commands_that_answer_it(
    environment: dict[str, str], start_main: StartMain, standin: StandIn
) -> None:
    def run(*commands: str) -> list[tuple[int, str]]:
        """Run these at once. Returns the exit status and the first line of each."""
        env = {**environment, **standin.environment}
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, shell=True, cwd=ROOT, env=env, **options) for command in commands]
        outputs = [process.communicate(timeout=60) for process in processes]
        assert {out for out, _ in outputs} == {""}
        return [(process.returncode, err.splitlines()[0]) for process, (_, err) in zip(processes, outputs, strict=True)]

    release = threading.Event()
    standin.geocoding = held(release, json_reply({"results": []}))
    standin.play(calls(TOKYO, PARIS), text("the answer"))
    process = start_main("Weather?", "--id", "it's ours", "--approve", env=standin.environment)
    yes_tokyo, _, _, no_paris = printed_commands(process, 2)
    wrong = yes_tokyo[:-8] + "nonsense"
    assert run(yes_tokyo, wrong) == [
        (0, 'Approved: get_weather(city="Tokyo")'),
        (1, "Error: no tool call 'nonsense' waits for an approval"),
    ]
    assert run(no_paris, yes_tokyo) == [
        (0, 'Refused: get_weather(city="Paris")'),
        (1, f"Error: tool call '{yes_tokyo[-8:]}' is answered already"),
    ]
    release.set()
    assert process.communicate(timeout=60)[0] == "the answer\n"
    assert results(standin) == [
        "ToolError: get_weather failed: there is no city called 'Tokyo'",
        "ToolError: a person did not allow this call of get_weather: …",
    ]
    assert run(yes_tokyo) == [(1, 'Error: run "it\'s ours" is over: nothing waits for an answer in it')]


async def test_an_answer_that_nobody_takes_can_be_interrupted(
    client: Client, start_main: StartMain, standin: StandIn
) -> None:
    name = uuid.uuid4().hex
    standin.play(calls(TOKYO), text("the answer"))
    victim = start_main("Weather?", "--id", name, "--approve", env=standin.environment)
    handle = client.get_workflow_handle(name)
    await asyncio.to_thread(printed_commands, victim, 1)
    [call] = await until_asked(handle, "Tokyo")
    kill(victim)
    process = start_main("--no-worker", "--id", name, "--yes", call, env=standin.environment)
    async with asyncio.timeout(60):  # the answer has arrived when there is a task for a worker
        while not (await handle.describe()).raw_description.HasField("pending_workflow_task"):
            pass
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.to_thread(process.communicate, timeout=20)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_who_answers_does_not_begin_what_is_allowed(client: Client, run_main: RunMain, standin: StandIn) -> None:
    # The process ends at once, and would take the call that it began with it.
    standin.play(calls(TOKYO), text("the answer"))
    async with make_worker(client, command_line.TASK_QUEUE):
        request = AgentRequest(query="Weather?", model="m", approve=True)
        handle = await client.start_workflow(
            AgentWorkflow.run, request, id=uuid.uuid4().hex, task_queue=command_line.TASK_QUEUE
        )
        [call] = await until_asked(handle, "Tokyo")
    gc.collect()  # a run that a worker lets go leaves a generator of the SDK's, which says so when it is collected
    result = await asyncio.to_thread(run_main, "--id", handle.id, "--yes", call, env=standin.environment)
    assert (result.returncode, result.stdout) == (0, "")
    [pending] = (await handle.describe()).raw_description.pending_activities
    assert (pending.attempt, pending.HasField("last_started_time")) == (1, False)
    async with make_worker(client, command_line.TASK_QUEUE):
        assert (await handle.result()).text == "the answer"
    assert standin.lookups == ["Tokyo"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--yes", "c"], ANSWERS_A_RUN),
        (["q", "--id", "i", "--no", "c"], ANSWERS_A_RUN),
        (["--id", "i", "--yes", "c", "--no", "c"], "argument --no: not allowed with argument --yes"),
        (["--id", "i", "--yes", "c", "--reason", "r"], "--reason says why not: it belongs to --no"),
        (["q", "--reason", "r"], "--reason says why not: it belongs to --no"),
        (["--worker", "--approve"], "--approve is for starting a run: it takes a query"),
        (["--id", "i", "--approve"], "--approve is for starting a run: it takes a query"),
        (["--id", "i", "--yes", " "], "--yes is empty"),
        (["--id", "i", "--no", "c", "--reason", "bell\a"], "--reason contains control characters"),
        (["--id", "i", "--no"], "argument --no: expected one argument"),
    ],
)
def test_wrong_usage_is_answered_with_one_line(arguments: list[str], problem: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments], capture_output=True, text=True, timeout=20, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"main.py: error: {problem}"
