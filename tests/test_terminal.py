"""What a person sees of a run: in a terminal while it goes on, in the Web UI, and afterwards."""

import asyncio
import json
import re
import shlex
import signal
import statistics
import subprocess
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import OpenTerminal, RunMain, StartAgent, StartMain, make_worker
from processes import line_with
from standin import Call, StandIn, cut_off, hang, held, parts, text, text_parts
from standin import json as json_reply
from standin import tools as calls
from starlette.responses import Response
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowHandle

from app import command_line, demo, devserver
from app.demo import Part, finish
from bridge.transcript import TRANSCRIPT_QUERY, Transcript

TOKYO = "Tokyo: 18.4 °C, partly cloudy, wind 12.1 km/h."
PLACE = json_reply({"results": [{"name": "Tokyo", "latitude": 35.6895, "longitude": 139.6917}]})

pytestmark = pytest.mark.usefixtures("alone")


def delta(words: str) -> Part:
    return {"type": "text-delta", "id": "t", "delta": words}


END: list[Part] = [text_parts()[1], finish("stop", 10, 5)]


def begun(*deltas: str) -> list[Part]:
    """The parts of a text that goes on."""
    return text_parts(*deltas)[:-1]


def thought(words: str) -> list[Part]:
    return [{"type": f"reasoning-{kind}", "id": "r", "delta": words} for kind in ("start", "delta", "end")]


def event_types(events: list[HistoryEvent]) -> list[int]:
    return [event.event_type for event in events]


# ── The text as it comes ─────────────────────────────────────────────────────────────────────────────────


async def test_text_is_seen_at_once_by_every_client_also_by_one_that_joins_in_the_middle(
    client: Client, start_agent: StartAgent, start_main: StartMain, open_terminal: OpenTerminal, standin: StandIn
) -> None:
    words = [f"word{i:02}" for i in range(60)]
    joined, seen = threading.Event(), threading.Event()
    sent: dict[str, float] = {}

    async def write() -> AsyncIterator[Part]:
        yield begun()[0]
        for word in words:
            if word == words[10]:
                await asyncio.to_thread(joined.wait)
            await asyncio.sleep(0.03)
            sent[word] = time.monotonic()
            yield delta(f"{word} ")
        await asyncio.to_thread(seen.wait)
        for part in END:
            yield part

    standin.play(lambda call: demo.stream(write()), text(" ".join(words)))
    name = uuid.uuid4().hex
    start_main("--worker", env=standin.environment)
    first = open_terminal("--no-worker", "Weather?", "--id", name, piped=True)
    first.wait_for(words[0], words[9])
    second = open_terminal("--no-worker", "--id", name)
    second.wait_for(words[0], words[9])
    joined.set()
    for terminal in (first, second):
        terminal.wait_for(*words)
    seen.set()

    # On standard output, and nowhere else, the answer stands exactly once.
    assert first.finish() == (0, " ".join(words) + " \n")
    assert "word" not in "\n".join(first.scrolled)
    assert second.finish()[0] == 0
    whole = "\n".join(second.scrolled)
    assert [whole.count(word) for word in words] == [1] * 60

    for terminal, number in ((first, 1), (second, 2)):
        shown: dict[str, float] = {}
        for moment, frame in terminal.frames():
            shown |= {word: moment for word in words[10:] if word in frame and word not in shown}
        delays = [shown[word] - sent[word] for word in words[10:]]
        p95 = statistics.quantiles(delays, n=20)[-1]
        print(f"client {number}: median {statistics.median(delays):.3f} s, p95 {p95:.3f} s, max {max(delays):.3f} s")
        assert p95 < 1.5  # 0.3 promised, the rest for a loaded machine

    # The history has not one event more than that of an answer which came all at once.
    at_once = await start_agent("Weather?")
    assert (await at_once.result()).text == " ".join(words)
    streamed = await client.get_workflow_handle(name).fetch_history()
    assert event_types([*streamed.events]) == event_types([*(await at_once.fetch_history()).events])


def test_the_text_of_a_failed_attempt_is_withdrawn(open_terminal: OpenTerminal, standin: StandIn) -> None:
    failing, done = threading.Event(), threading.Event()
    standin.play(
        cut_off(*thought("Let me see."), *begun("On Monday it rains"), failing),
        parts(*thought("Once more."), *begun("On Tuesday it snows"), done, *END),
    )
    terminal = open_terminal("Weather?", "--model", "m", env=standin.environment)
    terminal.wait_for("Let me see.", "On Monday it rains")
    assert terminal.style_of("Let me see.").italics
    assert not terminal.style_of("On Monday").italics
    failing.set()
    terminal.wait_for("! m, call 1: attempt 1 failed: ", gone=["Let me see.", "Monday"])
    terminal.wait_for("Once more.", "On Tuesday it snows", gone=["Let me see.", "Monday"])
    done.set()
    assert terminal.finish()[0] == 0
    frames = [*terminal.frames()]
    assert not [frame for _, frame in frames if "Monday" in frame and "Tuesday" in frame]
    told = min(moment for moment, frame in frames if "attempt 1 failed" in frame)
    withdrawn = max(moment for moment, frame in frames if "Monday" in frame)
    assert withdrawn - told < 0.5  # and not only when the next attempt begins, a second later
    whole = "\n".join(terminal.scrolled)
    assert re.search(r"✓ m, call 1 done in \d+\.\d s, attempt 2: 10 tokens in, 5 out", whole)
    assert whole.count("On Tuesday it snows") == 1
    assert "Monday" not in whole


def test_a_long_answer_in_a_small_terminal_is_seen_to_its_end_also_when_the_size_changes(
    open_terminal: OpenTerminal, standin: StandIn
) -> None:
    items = [f"item{i:02}" for i in range(30)]
    resized, done = threading.Event(), threading.Event()
    wide = "This line is too long for the terminal as it was"
    answer = begun("# The forecast\n\n", *(f"- **{item}** is fine\n" for item in items))
    standin.play(parts(*answer, resized, delta(f"\n{wide}"), done, *END))
    terminal = open_terminal("Weather?", "--model", "m", env=standin.environment, size=(30, 12))
    terminal.wait_for("• item29 is fine", "m, call 1", gone=["**"])
    assert terminal.style_of("item29").bold
    terminal.resize(60, 16)
    resized.set()
    terminal.wait_for(wide, "• item29 is fine", "m, call 1")
    shown = "\n".join(terminal.lines)
    assert [item for item in items if shown.count(item) > 1] == []
    done.set()
    assert terminal.finish()[0] == 0
    whole = "\n".join(terminal.scrolled)
    assert [whole.count(words) for words in (*items, "The forecast", wide)] == [1] * 32
    assert "#" not in whole


def test_neither_long_reasoning_nor_control_codes_hide_the_answer(
    open_terminal: OpenTerminal, standin: StandIn
) -> None:
    done = threading.Event()
    codes = "\x1b[31mred \x1b]0;title\a \x9b2J"
    standin.play(parts(*thought(f"I wonder. {codes}" * 50), *begun(f"line {codes}\n" * 20, "THE END"), done, *END))
    terminal = open_terminal("Weather?", "--model", "m", env=standin.environment, size=(40, 12))
    terminal.wait_for("THE END", "call 1", seconds=20)
    done.set()
    assert terminal.finish()[0] == 0
    assert "red" in "\n".join(terminal.scrolled)
    for code in ("\x1b[31m", "\x1b]", "\a", "\x9b"):
        assert code.encode() not in terminal.written


# ── The steps ────────────────────────────────────────────────────────────────────────────────────────────


def test_calls_are_seen_while_they_go_on_and_then_what_came_of_them(
    open_terminal: OpenTerminal, standin: StandIn
) -> None:
    release = threading.Event()
    later = held(release, PLACE)

    def geocoding(call: Call) -> Any:
        match standin.lookups[-1]:
            case "Tokyo":
                return later(call)
            case "Paris" if standin.lookups.count("Paris") == 1:
                return Response(status_code=503)
            case "Atlantis":
                return json_reply({})(call)
        return PLACE(call)

    standin.geocoding = geocoding
    cities = {"a": "Tokyo", "b": "Paris", "c": "Atlantis"}
    standin.play(calls(*((id, "get_weather", {"city": city}) for id, city in cities.items())), text("Nice, everywhere"))
    terminal = open_terminal("Weather?", "--model", "m", env=standin.environment, size=(160, 24))
    terminal.wait_for('get_weather(city="Atlantis") FAILED', 'get_weather(city="Paris") done')
    terminal.wait_for('get_weather(city="Tokyo") 1 s')
    release.set()
    assert terminal.finish()[0] == 0

    spinners = {
        line.split()[0]
        for _, frame in terminal.frames()
        for line in frame.splitlines()
        if 'get_weather(city="Tokyo")' in line and "done" not in line
    }
    assert len(spinners) > 3
    lines = [re.sub(r"\d+\.\d s|next one .*", "…", line) for line in terminal.scrolled if line]
    forecast = '{"city":"Tokyo","country":"","temperature":"18.4 °C","conditions":"partly cloudy","wind":"12.1 km/h"}'
    assert lines[1] == "  ✓ m, call 1 done in …: 10 tokens in, 5 out"
    assert sorted(lines[2:5]) == [
        "  ! get_weather(city=\"Paris\"): attempt 1 failed: asking about 'Paris' failed with HTTP status 503; …",
        f'  ✓ get_weather(city="Paris") done in …, attempt 2: {forecast}',
        "  ✗ get_weather(city=\"Atlantis\") FAILED after …: there is no city called 'Atlantis'",
    ]
    assert lines[5:] == [
        f'  ✓ get_weather(city="Tokyo") done in …: {forecast}',
        "  ✓ m, call 2 done in …: 10 tokens in, 5 out",
        "Nice, everywhere",
        "2 model calls, 3 tool calls, 20 tokens in, 10 out, …",
    ]


async def test_without_a_terminal_or_colours_there_are_plain_lines(
    client: Client, start_main: StartMain, open_terminal: OpenTerminal, standin: StandIn
) -> None:
    arguments = ("--no-worker", "Weather in Tokyo?", "--model", "m")
    async with make_worker(client, command_line.TASK_QUEUE):
        piped = start_main(*arguments)
        terminals = [open_terminal(*arguments, env={"NO_COLOR": "1"}), open_terminal(*arguments, env={"TERM": "dumb"})]
        (out, err), *_ = await asyncio.gather(
            asyncio.to_thread(piped.communicate, timeout=60),
            *(asyncio.to_thread(terminal.finish) for terminal in terminals),
        )
    assert out == f"{TOKYO}\n"

    def same(lines: list[str]) -> list[str]:
        return [re.sub(r"\d+\.\d s|[0-9a-f]{12}|process \d+", "N", line) for line in lines]

    *steps, summary = err.splitlines()
    for terminal in terminals:
        assert not re.search(rb"[^\r\n -~\x80-\xff]", terminal.written)
        assert same(terminal.written.decode().splitlines()) == same([*steps, TOKYO, summary])
    assert not re.search(r"[^\n -~…°]", err)
    assert [line[:4] for line in steps[-6:]] == ["  > ", "  < "] * 3


def test_after_ctrl_c_the_terminal_is_as_it_was(open_terminal: OpenTerminal, standin: StandIn) -> None:
    standin.play(hang(*begun("half an answer")))
    terminal = open_terminal("Weather?", "--id", "stopped", env=standin.environment)
    terminal.wait_for("half an answer")
    assert not terminal.has_cursor()
    terminal.type("\x03")
    assert terminal.finish()[0] == 130
    assert terminal.has_cursor()
    shown = "\n".join(terminal.lines)
    assert "follow it with: uv run python main.py --id stopped" in " ".join(shown.split())
    assert "half an answer" not in shown


# ── The Web UI ───────────────────────────────────────────────────────────────────────────────────────────


async def details(handle: WorkflowHandle[Any, Any]) -> str:
    """What the Web UI shows at the top of a run's page."""
    metadata: WorkflowMetadata = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return metadata.current_details


async def test_the_web_ui_tells_what_a_run_is_doing(start_agent: StartAgent, standin: StandIn) -> None:
    asked, looked_up = threading.Event(), threading.Event()
    cities = [(city, "get_weather", {"city": city}) for city in ("Tokyo", "Paris")]
    standin.geocoding = held(looked_up, PLACE)
    standin.play(held(asked, calls(*cities)), text("the answer"))
    handle = await start_agent()
    await asyncio.to_thread(standin.wait_for, calls=1)
    assert await details(handle) == "- asking test/model, call 1"
    asked.set()
    await asyncio.to_thread(standin.wait_for, lookups=2)
    tools = '- calling get_weather(city="Tokyo")\n- calling get_weather(city="Paris")'
    assert await details(handle) == f"{tools}\n\n10 tokens in, 5 out"
    looked_up.set()
    await handle.result()
    assert await details(handle) == "nothing is under way\n\n20 tokens in, 10 out"


async def test_a_run_has_a_title_every_call_a_summary_and_all_of_it_is_readable_json(
    client: Client, run_main: RunMain, standin: StandIn
) -> None:
    name = uuid.uuid4().hex
    run_main("What is the weather\nin Tokyo?", "--id", name, "--model", "m", env=standin.environment)
    handle = client.get_workflow_handle(name)
    assert await (await handle.describe()).static_summary() == "What is the weather in Tokyo?"
    events = (await handle.fetch_history()).events
    scheduled = [event for event in events if event.HasField("activity_task_scheduled_event_attributes")]
    assert [json.loads(event.user_metadata.summary.data) for event in scheduled] == [
        "m, call 1",
        'get_weather(city="Tokyo")',
        "m, call 2",
    ]
    payloads = [
        payload
        for event in events
        for payload in (
            *event.workflow_execution_started_event_attributes.input.payloads,
            *event.activity_task_scheduled_event_attributes.input.payloads,
            *event.activity_task_completed_event_attributes.result.payloads,
            *event.workflow_execution_completed_event_attributes.result.payloads,
        )
    ]
    assert {payload.metadata["encoding"] for payload in payloads} == {b"json/plain"}
    contents = [json.loads(payload.data) for payload in payloads]
    assert len(contents) == 8
    assert contents[0]["query"] == "What is the weather\nin Tokyo?"
    assert contents[3] == {"tool": "get_weather", "arguments": {"city": "Tokyo"}}
    assert contents[4]["result"]["temperature"] == "18.4 °C"
    assert contents[-1].pop("conversation")["turns"] == 1
    assert contents[-1] == {"text": TOKYO, "finish_reason": "stop"}


async def test_the_transcript_is_the_conversation_of_a_run_live_or_over(
    environment: dict[str, str], start_agent: StartAgent, standin: StandIn
) -> None:
    release = threading.Event()
    standin.play(calls(("a", "get_weather", {"city": "Tokyo"})), held(release, text("the answer")))
    handle = await start_agent("Weather in Tokyo?")
    await asyncio.to_thread(standin.wait_for, calls=2)
    live = await handle.query(TRANSCRIPT_QUERY, result_type=Transcript)
    assert [message.role for message in live.messages] == ["system", "user", "assistant"]
    [call] = live.messages[-1].tool_calls
    assert (call.tool_args, call.status) == ('{"city": "Tokyo"}', "result")
    assert isinstance(call.result, dict)
    assert call.result["temperature"] == "18.4 °C"
    release.set()
    await handle.result()

    query = ["workflow", "query", "--type", "transcript", "--workflow-id", handle.id, "--output", "json"]
    command = [str(devserver.find_temporal()), *query, "--address", environment["TEMPORAL_ADDRESS"]]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20, check=True)
    [over] = json.loads(result.stdout)["queryResult"]
    said = [[part.get("text") for part in message["parts"]] for message in over["messages"]]
    assert said[1:] == [["Weather in Tokyo?"], [None], ["the answer"]]
    assert (len(over["messages"]), over["omitted"]) == (4, 0)


async def test_of_a_transcript_that_is_too_long_its_end_is_given(start_agent: StartAgent, standin: StandIn) -> None:
    weather = ("a", "get_weather", {"city": "Tokyo"})
    long = parts(*text_parts("天" * 500_000), *demo.tool_call(*weather), finish("tool-calls"))
    standin.play(long, long, text("the answer"))
    handle = await start_agent("Weather in Tokyo?")
    await handle.result()
    transcript = await handle.query(TRANSCRIPT_QUERY, result_type=Transcript)
    assert transcript.messages[-1].text == "the answer"
    assert transcript.omitted + len(transcript.messages) == 5
    assert transcript.omitted > 0


# ── Looking back ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_can_be_looked_at_after_its_server_was_stopped(folder: Path, start_main: StartMain) -> None:
    first = start_main("Weather in Tokyo?", "--id", "one", folder=folder)
    _, err = first.communicate(timeout=60)
    [page] = re.findall(r"http://\S+", err)
    [command] = re.findall(r"To look back: (.*), and open the page above", err)
    assert shlex.split(command)[:4] == ["uv", "run", "python", "main.py"]
    with httpx.Client(trust_env=False) as browser:
        with pytest.raises(httpx.ConnectError):
            browser.get(page)
        worker = start_main(*shlex.split(command)[4:], folder=folder)
        line_with(worker, "ready")
        until = time.monotonic() + 20
        while not devserver.answers(devserver.UI_PORT):  # a part of the server that may come later
            assert time.monotonic() < until
        shown = browser.get(page)
        # What the page then asks for, until the part of the server that serves it has found the rest.
        api = page.replace("/namespaces/", "/api/v1/namespaces/") + "/history"
        while "history" not in (answer := browser.get(api).json()):
            assert time.monotonic() < until, answer
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=20)
    assert worker.returncode == 0
    assert (shown.status_code, shown.text[:15].lower()) == (200, "<!doctype html>")
    events = [event["eventType"] for event in answer["history"]["events"]]
    assert (events[0], events[-1]) == (
        "EVENT_TYPE_WORKFLOW_EXECUTION_STARTED",
        "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED",
    )
