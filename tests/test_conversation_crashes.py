"""Real processes killed in a conversation: no message is lost, and none is answered twice."""

import asyncio
import functools
import os
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import RunMain, StartMain
from processes import kill, line_with
from standin import StandIn, hang, held, status, text, text_parts, tools
from temporalio.client import Client, WorkflowFailureError
from temporalio.worker import Worker
from test_conversation import Talk, prompts
from test_crashes import answer, server_pid

from app.command_line import TASK_QUEUE
from options.conversation_client import stop, turn_under_way, view
from plugin import DurableAgents
from workflow import AgentWorkflow

SECONDS = 45  # for what takes 15 at most on an idle machine

FIRST = [("user", "first?"), ("assistant", "One.")]


@pytest.fixture
def start(start_main: StartMain, standin: StandIn) -> StartMain:
    """Start `main.py` with a key and the stand-ins."""
    return functools.partial(start_main, env=standin.environment)


@pytest.fixture
def talk(client: Client, alone: None) -> Talk:
    """An open conversation, for the workers that `start` starts."""
    return Talk(client, queue=TASK_QUEUE, stay_open=True)


def start_worker(start: StartMain) -> subprocess.Popen[str]:
    worker = start("--worker")
    line_with(worker, "ready")
    return worker


async def called(standin: StandIn, calls: int) -> None:
    await asyncio.to_thread(standin.wait_for, calls=calls)


async def happened(talk: Talk, what: str) -> None:
    async for event in talk.handle.fetch_history_events(wait_new_event=True):
        if event.HasField(f"{what}_event_attributes"):  # type: ignore[arg-type]  # one of many names
            return


async def turns_of(talk: Talk) -> list[tuple[int, str | None, int]]:
    """The number, the outcome and the number of messages of each turn."""
    return [(turn.number, turn.outcome, len(turn.messages)) for turn in (await view(talk.handle)).turns]


# ── Killed workers ───────────────────────────────────────────────────────────────────────────────────────


async def test_killed_in_the_middle_of_the_second_answer(start: StartMain, standin: StandIn, talk: Talk) -> None:
    standin.play(text("One."), hang(*text_parts("Half an ans")[:-1]), text("Two."), text("Three."))
    worker = start_worker(start)
    assert await talk.ask("first?") == "answered: One."
    second = asyncio.create_task(talk.ask("second?", "m2"))
    await called(standin, 2)
    kill(worker)
    await talk.say("third?", "m3")
    await talk.say("second?", "m2")  # sent again, by somebody who does not know
    start_worker(start)
    async with asyncio.timeout(SECONDS):
        assert await second == "answered: Two."
        assert await talk.ask("third?", "m3") == "answered: Three."
    assert prompts(standin, 1) == prompts(standin, 2) == [*FIRST, ("user", "second?")]
    assert prompts(standin) == [*FIRST, ("user", "second?"), ("assistant", "Two."), ("user", "third?")]
    assert await turns_of(talk) == [(n, "answered", 2) for n in (1, 2, 3)]
    assert len(standin.calls) == 4


@pytest.mark.parametrize("state", ["waits", "is over", "has failed"])
async def test_a_message_waits_for_a_worker(start: StartMain, standin: StandIn, talk: Talk, state: str) -> None:
    talk.options["stay_open"] = state == "waits"
    standin.play(status(401) if state == "has failed" else text("One."), text("Two."), text("Three."))
    worker = start_worker(start)
    if state == "waits":
        await talk.ask("first?")
    else:
        await talk.say("first?")
        with suppress(WorkflowFailureError):
            await talk.handle.result()
    kill(worker)
    sender = start("--no-worker", "--id", talk.id, "second?")
    line_with(sender, f"Run {talk.id} (process {sender.pid}) goes on")
    kill(sender)  # nobody but the server has the message
    start_worker(start)
    async with asyncio.timeout(SECONDS):
        assert await talk.ask("third?") == "answered: Three."
    said = FIRST[:1] if state == "has failed" else FIRST
    assert prompts(standin, 1) == [*said, ("user", "second?")]
    assert prompts(standin) == [*said, ("user", "second?"), ("assistant", "Two."), ("user", "third?")]
    assert len(standin.calls) == 3


async def test_killed_while_messages_wait_to_steer(start: StartMain, standin: StandIn, talk: Talk) -> None:
    """One was sent before the kill, and one while no worker lives: both are read in this turn, in their order."""
    lookup = tools(("c1", "get_population", {"city": "Tokyo"}))
    standin.play(hang(), lookup, text("One."), text("Two."))
    worker = start_worker(start)
    first = asyncio.create_task(talk.ask("first?"))
    await called(standin, 1)
    turn = await turn_under_way(talk.handle)
    await talk.say("in millions", "m2", steers=turn)
    kill(worker)
    await talk.say("and be brief", steers=turn)
    steered = asyncio.create_task(talk.ask("in millions", "m2", steers=turn))
    start_worker(start)
    async with asyncio.timeout(SECONDS):
        assert [await first, await steered] == ["answered: One."] * 2
        assert await talk.ask("second?") == "answered: Two."
    steers = [("user", "in millions"), ("user", "and be brief")]
    assert prompts(standin, 0) == prompts(standin, 1) == [("user", "first?")]
    assert [role for role, _ in prompts(standin, 2)] == ["user", "assistant", "tool", "user", "user"]
    assert prompts(standin, 2)[-2:] == steers
    assert prompts(standin, 3) == [*prompts(standin, 2), ("assistant", "One."), ("user", "second?")]
    assert standin.lookups == ["Tokyo"]


async def test_stopped_while_no_worker_lives(start: StartMain, run_main: RunMain, standin: StandIn, talk: Talk) -> None:
    # The call that was in flight may begin again before the new worker reads of the stop.
    standin.play(*[lambda call: (text("Two.") if "second?" in str(call.prompt) else hang())(call)] * 3)
    worker = start_worker(start)
    first = asyncio.create_task(talk.ask("first?"))
    await called(standin, 1)
    kill(worker)
    stopped = await asyncio.to_thread(run_main, "--stop", "--id", talk.id)
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert stopped.stderr.startswith(f"Stopping turn 1 of {talk.id}.")
    await talk.say("second?", "m2")
    start_worker(start)
    async with asyncio.timeout(SECONDS):
        assert await first == "stopped: "
        assert await talk.ask("second?", "m2") == "answered: Two."
    assert prompts(standin) == [("user", "first?"), ("user", "second?")]
    assert len(standin.calls) <= 3


async def test_killed_between_the_stop_and_the_end_of_the_call(
    start: StartMain, standin: StandIn, client: Client, talk: Talk
) -> None:
    standin.play(hang(*text_parts("Half an ans")[:-1]), text("Two."))
    only_workflows = await Client.connect(client.service_client.config.target_host, plugins=[DurableAgents()])
    async with Worker(only_workflows, task_queue=TASK_QUEUE, workflows=[AgentWorkflow]):
        await talk.say("first?", "m1")
        first = asyncio.create_task(talk.ask("first?", "m1"))
        await happened(talk, "activity_task_scheduled")
        caller = start_worker(start)
        await called(standin, 1)
        caller.send_signal(signal.SIGSTOP)
        assert await stop(talk.handle) == 1
        await happened(talk, "activity_task_cancel_requested")
        kill(caller)
        async with asyncio.timeout(SECONDS):
            assert (await first).startswith("stopped: ")
            start_worker(start)
            assert await talk.ask("second?") == "answered: Two."
    assert prompts(standin)[0] == ("user", "first?")
    assert prompts(standin)[-1] == ("user", "second?")
    assert len(standin.calls) == 2


# ── Killed servers ───────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_outlives_its_server(folder: Path, start: StartMain, standin: StandIn) -> None:
    """Killed between two messages, in the middle of an answer, and with a message that only the server has."""
    standin.play(text("One."))
    run = functools.partial(start, "--id", "one", folder=folder)
    worker = start("--worker", folder=folder)
    line_with(worker, "ready")
    assert answer(run("--no-worker", "first?"), SECONDS) == "One.\n"

    os.kill(server_pid(folder), signal.SIGKILL)
    release = threading.Event()
    standin.play(held(release, text("Two.")))
    second = run("--no-worker", "second?")
    standin.wait_for(calls=2)
    os.kill(server_pid(folder), signal.SIGKILL)
    release.set()
    assert answer(second, SECONDS) == "Two.\n"

    kill(worker)
    sender = run("--no-worker", "third?")
    line_with(sender, "goes on")
    os.kill(server_pid(folder), signal.SIGKILL)
    kill(sender)
    standin.play(text("Three."))
    assert answer(run(), SECONDS) == "Three.\n"
    assert prompts(standin) == [*FIRST, ("user", "second?"), ("assistant", "Two."), ("user", "third?")]
    assert len(standin.calls) == 3
