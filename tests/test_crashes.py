"""Real processes killed with real signals: nothing is lost, and nothing that was done is done again."""

import asyncio
import functools
import os
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import StartMain, StartServer
from processes import kill, line_with
from standin import StandIn, hang, held, json, text
from standin import tools as calls
from temporalio.client import Client

from app import devserver

BOUND = 25  # seconds from a restart to the answer: 15 of them promised, the rest for a loaded machine
TOKYO_AND_PARIS = "Weather in Tokyo and Paris?"

type Follow = Callable[[], tuple[subprocess.Popen[str], subprocess.Popen[bytes], str]]
"""Returns the process of `main.py`, that of its server, and the server's address."""


@pytest.fixture
def start(start_main: StartMain, standin: StandIn) -> StartMain:
    """Start `main.py` with a key and the stand-ins."""
    return functools.partial(start_main, env=standin.environment)


def answer(process: subprocess.Popen[str], seconds: float = BOUND) -> str:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out


# ── Killed workers ───────────────────────────────────────────────────────────────────────────────────────


def test_killed_before_the_first_workflow_task(start: StartMain, standin: StandIn) -> None:
    name = uuid.uuid4().hex
    client = start("--no-worker", TOKYO_AND_PARIS, "--id", name)
    line_with(client, f"Run {name}")
    kill(client)
    assert "Paris" in answer(start("--id", name))
    assert (len(standin.calls), Counter(standin.lookups)) == (2, Counter(Tokyo=1, Paris=1))


@pytest.mark.parametrize("call", [1, 2])
def test_killed_during_a_model_call(start: StartMain, standin: StandIn, call: int) -> None:
    name = uuid.uuid4().hex
    two = calls(("a", "get_weather", {"city": "Tokyo"}), ("b", "get_weather", {"city": "Paris"}))
    standin.play(*[two, text("the answer")][: call - 1], hang(), *[two, text("the answer")][call - 1 :])
    victim = start(TOKYO_AND_PARIS, "--id", name)
    standin.wait_for(calls=call)
    kill(victim)
    assert answer(start("--id", name)) == "the answer\n"
    assert (len(standin.calls), Counter(standin.lookups)) == (3, Counter(Tokyo=1, Paris=1))


def test_killed_during_one_of_two_parallel_tool_calls(start: StartMain, standin: StandIn) -> None:
    name, release = uuid.uuid4().hex, threading.Event()
    place = json({"results": [{"name": "Tokyo", "latitude": 35.6895, "longitude": 139.6917}]})
    later = held(release, place)
    standin.geocoding = lambda call: later(call) if len(standin.lookups) == 2 else place(call)
    standin.play(
        calls(("a", "get_weather", {"city": "Tokyo"}), ("b", "get_weather", {"city": "Tokio"})), text("the answer")
    )
    victim = start(TOKYO_AND_PARIS, "--id", name)
    line_with(victim, "< get_weather")
    standin.wait_for(lookups=2)
    kill(victim)
    release.set()
    assert answer(start("--id", name)) == "the answer\n"
    # The first of the two was done; only the second, in flight at the kill, was asked for again.
    assert len(standin.calls) == 2
    assert Counter(standin.lookups)[standin.lookups[0]] == 1
    assert len(standin.lookups) == 3


def test_workers_share_the_work_and_either_may_be_killed(start: StartMain, standin: StandIn) -> None:
    workers = [start("--worker"), start("--worker")]
    for worker in workers:
        line_with(worker, "ready")
    standin.play(hang())
    client = start("--no-worker", TOKYO_AND_PARIS)
    standin.wait_for(calls=1)
    # Whichever of them has the call: the other one will do.
    kill(workers[0])
    if standin.calls[0].closed.wait(1):
        assert "Paris" in answer(client, 2 * BOUND)
        return
    workers[0] = start("--worker")
    line_with(workers[0], "ready")
    kill(workers[1])
    assert "Paris" in answer(client, 2 * BOUND)


def test_without_a_worker_it_says_that_it_waits_for_one(
    start: StartMain, start_server: StartServer, standin: StandIn
) -> None:
    _, address = start_server()
    env = {**standin.environment, "TEMPORAL_ADDRESS": address}
    client = start("--no-worker", "Weather in Tokyo?", env=env)
    line_with(client, "No worker serves the task queue durable-agent; waiting for one.")
    start("--worker", env=env)
    assert "Tokyo" in answer(client)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_hands_its_calls_over_at_once(
    start: StartMain, standin: StandIn, number: signal.Signals
) -> None:
    first = start("--worker")
    line_with(first, "ready")
    standin.play(hang(*[{"type": "text-start", "id": "1"}, {"type": "text-delta", "id": "1", "delta": "half"}]))
    client = start("--no-worker", "Weather in Tokyo?")
    standin.wait_for(calls=1)
    second = start("--worker")
    line_with(second, "ready")
    since = time.monotonic()
    first.send_signal(number)
    standin.wait_for(calls=2, seconds=4)  # less than the heartbeat timeout of five
    _, err = first.communicate(timeout=10)
    assert (first.returncode, err) == (0, "")
    assert time.monotonic() - since < 10
    assert "Tokyo" in answer(client)


def test_an_interrupted_run_goes_on_and_says_how_to_rejoin_it(start: StartMain, standin: StandIn) -> None:
    standin.play(hang())
    process = start("Weather in Tokyo?", "--id", "it's mine")
    standin.wait_for(calls=1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    rejoin = "Interrupted. The run itself goes on; follow it with: uv run python main.py --id 'it'\"'\"'s mine'"
    assert err.splitlines()[-1] == rejoin
    assert "Traceback" not in err
    assert "Tokyo" in answer(start("--id", "it's mine"))


def test_a_run_that_continues_as_new_is_followed_to_its_answer(
    start_main: StartMain, start_server: StartServer, standin: StandIn
) -> None:
    _, address = start_server("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=15")
    start = functools.partial(start_main, env={**standin.environment, "TEMPORAL_ADDRESS": address})
    cities = ["Tokyo", "Paris", "London", "Madrid"]
    turns = [calls((city, "get_population", {"city": city})) for city in cities]
    standin.play(*turns[:3], hang(), *turns[3:], text("the answer"))
    name = uuid.uuid4().hex
    victim = start(TOKYO_AND_PARIS, "--id", name)
    steps = [line_with(victim, f"> anthropic/claude-sonnet-4.6, call {n}") for n in range(1, 5)]
    assert len(steps) == 4
    standin.wait_for(calls=4)
    kill(victim)
    out, err = start("--id", name).communicate(timeout=BOUND)
    assert out == "the answer\n"
    assert "5 model calls, 4 tool calls, 50 tokens in, 25 out" in err  # of all parts
    assert Counter(standin.lookups) == Counter(cities)
    assert len(standin.calls) == 6
    assert [result["toolCallId"] for result in standin.calls[-1].tool_results] == cities


# ── Cancelling ───────────────────────────────────────────────────────────────────────────────────────────


def test_cancelling_closes_the_connection_to_the_model(
    start: StartMain, standin: StandIn, environment: dict[str, str]
) -> None:
    name = uuid.uuid4().hex
    standin.play(hang(*[{"type": "text-start", "id": "1"}, {"type": "text-delta", "id": "1", "delta": "half"}]))
    process = start("Weather?", "--id", name)
    standin.wait_for(calls=1)
    temporal = devserver.find_temporal()
    assert temporal is not None
    cancel = ["workflow", "cancel", "--workflow-id", name, "--address", environment["TEMPORAL_ADDRESS"]]
    subprocess.run([temporal, *cancel], check=True, capture_output=True, timeout=20)
    assert standin.calls[0].closed.wait(5)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1] == "Error: the run was cancelled"
    assert len(standin.calls) == 1


async def test_a_terminated_run_is_told_with_the_reason(start: StartMain, standin: StandIn, client: Client) -> None:
    name = uuid.uuid4().hex
    standin.play(hang())
    process = start("Weather?", "--id", name)
    await asyncio.to_thread(standin.wait_for, calls=1)
    await client.get_workflow_handle(name).terminate(reason="nobody wants to know")
    out, err = await asyncio.to_thread(process.communicate, timeout=20)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1] == "Error: the run was terminated: nobody wants to know"


@pytest.fixture
def follow(start: StartMain, start_server: StartServer, standin: StandIn) -> Follow:
    """Start a run in a call of the model that never ends, on a named server that keeps it in memory."""

    def begin() -> tuple[subprocess.Popen[str], subprocess.Popen[bytes], str]:
        server, address = start_server()
        standin.play(hang())
        process = start("Weather?", env={**standin.environment, "TEMPORAL_ADDRESS": address})
        standin.wait_for(calls=1)
        return process, server, address

    return begin


def test_a_second_ctrl_c_ends_what_a_silent_server_holds_up(follow: Follow) -> None:
    process, server, _ = follow()
    server.send_signal(signal.SIGSTOP)
    presses = 0
    while process.poll() is None and presses < 10:
        presses += 1
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.5)
    assert process.poll() == 130
    assert presses > 1  # or nothing held it up


# ── Killed servers ───────────────────────────────────────────────────────────────────────────────────────


def server_pid(folder: Path) -> int:
    return int((folder / ".temporal" / "server.pid").read_text())


def test_a_killed_dev_server_is_started_again_by_the_run_that_uses_it(
    folder: Path, start: StartMain, standin: StandIn
) -> None:
    release = threading.Event()
    standin.play(held(release, calls(("a", "get_weather", {"city": "Tokyo"}))), text("the answer"))
    process = start("Weather?", folder=folder)
    standin.wait_for(calls=1)
    before = server_pid(folder)
    os.kill(before, signal.SIGKILL)
    release.set()
    assert answer(process, 60) == "the answer\n"
    assert server_pid(folder) != before
    assert standin.lookups == ["Tokyo"]


def test_a_named_server_that_is_lost_is_waited_for(
    start: StartMain, start_server: StartServer, standin: StandIn, tmp_path: Path
) -> None:
    release = threading.Event()
    standin.play(held(release, text("the answer")), text("the answer"))
    database = ("--db-filename", str(tmp_path / "db"))
    server, address = start_server(*database)
    process = start("Weather?", env={**standin.environment, "TEMPORAL_ADDRESS": address})
    standin.wait_for(calls=1)
    kill(server)
    line_with(process, "Lost the Temporal server; waiting for it to come back.")
    start_server(*database, port=int(address.rpartition(":")[2]))
    release.set()
    assert answer(process, 60) == "the answer\n"


def test_a_named_server_that_is_gone_for_good_is_given_up(follow: Follow) -> None:
    process, server, _ = follow()
    kill(server)
    line_with(process, "Lost the Temporal server; waiting for it to come back.")
    since = time.monotonic()
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("Error: the Temporal server does not come back (")
    assert err.endswith("; when it is back, rejoin the run with: uv run python main.py --id ID\n")
    assert time.monotonic() - since > 50  # the minute of the README began before the line


def test_a_server_that_comes_back_without_the_run_says_so(follow: Follow, start_server: StartServer) -> None:
    process, server, address = follow()
    kill(server)
    line_with(process, "Lost the Temporal server; waiting for it to come back.")
    start_server(port=int(address.rpartition(":")[2]))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines()[-1].startswith("Error: the Temporal server refused: workflow execution not found")


def test_server_and_run_killed_together(folder: Path, start: StartMain, standin: StandIn) -> None:
    standin.play(calls(("a", "get_weather", {"city": "Tokyo"})), hang(), text("the answer"))
    victim = start("Weather?", "--id", "one", folder=folder)
    standin.wait_for(calls=2)
    os.kill(server_pid(folder), signal.SIGKILL)
    kill(victim)
    assert answer(start("--id", "one", folder=folder)) == "the answer\n"
    assert (len(standin.calls), standin.lookups) == (3, ["Tokyo"])


def test_a_dev_server_killed_while_it_makes_its_database(folder: Path, start: StartMain, standin: StandIn) -> None:
    state = folder / ".temporal"
    state.mkdir()
    (state / "temporal.db").write_bytes(b"")  # what such a kill leaves: a file without the tables
    assert "Tokyo" in answer(start("Weather in Tokyo?", "--id", "one", folder=folder))
    assert "Tokyo" in answer(start("--id", "one", folder=folder))


async def test_a_dev_server_killed_while_one_connects_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devserver, "STATE", folder / ".temporal")
    killed: list[int] = []

    async def connect() -> Client:
        if not killed:
            if not devserver.answers(devserver.PORT):
                raise ConnectionError("it is not that far")  # the client would wait for it, and find it unharmed
            killed.append(server_pid(folder))
            os.kill(killed[0], signal.SIGKILL)
        return await Client.connect(f"localhost:{devserver.PORT}")

    async with devserver.dev_server("default", connect):
        assert killed
        assert server_pid(folder) != killed[0]


def test_a_dev_server_left_behind_is_used_by_the_next_run_and_stopped(
    folder: Path, start: StartMain, standin: StandIn
) -> None:
    standin.play(hang(), text("the answer"))
    victim = start("Weather?", "--id", "one", folder=folder)
    standin.wait_for(calls=1)
    before = server_pid(folder)
    kill(victim)
    assert devserver.answers(devserver.PORT)
    assert answer(start("--id", "one", folder=folder)) == "the answer\n"
    assert server_pid(folder) == before
    assert not devserver.answers(devserver.PORT)
