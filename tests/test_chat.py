"""`main.py --chat`: a conversation in a real terminal, and through pipes."""

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, OpenTerminal, RunMain
from standin import StandIn, hang, held, parts, status, text, text_parts
from standin import tools as calls
from temporalio.client import Client, WorkflowExecutionStatus
from terminal import Terminal

from app.demo import Part, finish
from options.conversation import UserMessage
from options.conversation_client import say

TOKYO, PARIS = ("a", "get_weather", {"city": "Tokyo"}), ("b", "get_weather", {"city": "Paris"})
READY, WORKS = "> a message, or /help", "> steers turn"
COME_BACK = "Come back with: uv run python main.py --chat --id"

pytestmark = pytest.mark.usefixtures("alone")

type OpenChat = Callable[..., Terminal]


@pytest.fixture
def open_chat(open_terminal: OpenTerminal, standin: StandIn, tmp_path: Path) -> OpenChat:
    """Start a chat in a terminal, with an own history of the prompt."""
    env = {**standin.environment, "XDG_STATE_HOME": str(tmp_path / "state")}

    def start(*arguments: str, **options: object) -> Terminal:
        return open_terminal("--chat", "--model", "m", *arguments, env=env, **{"size": (90, 40), **options})

    return start


@pytest.fixture
def name() -> str:
    return f"chat-{uuid.uuid4().hex[:8]}"


def begun(words: str) -> list[Part]:
    """The parts of a text that goes on."""
    return text_parts(words)[:-1]


def ended(words: str) -> list[Part]:
    """The rest of it."""
    return [*text_parts(words)[1:], finish("stop", 10, 5)]


def lines_of(terminal: Terminal) -> list[str]:
    """What stands there, with no figure of time, and no id."""
    return [re.sub(r"\d+\.\d s|chat-\w+|process \d+", "N", line) for line in terminal.scrolled if line]


async def send_from_elsewhere(client: Client, name: str, words: str, steers: int | None = None) -> None:
    async def start(state: object) -> None:
        raise AssertionError("the run is over")

    await say(client, name, UserMessage(id=uuid.uuid4().hex, text=words, steers=steers), start)  # type: ignore[arg-type]  # never called


# ── A conversation ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_conversation_of_several_turns_is_had_at_one_prompt(
    client: Client, open_chat: OpenChat, standin: StandIn, name: str, tmp_path: Path
) -> None:
    asked, answered = threading.Event(), threading.Event()
    standin.play(
        text("**One**."),
        held(asked, calls(TOKYO)),
        parts(*begun("It is 18 °C"), answered, *ended(" and sunny")),
        hang(*begun("Half an ans")),
        text("Four."),
        text("Five."),
    )
    chat = open_chat("--id", name, "first?")
    chat.wait_for("One.", READY)
    assert chat.style_of("One").bold

    # A message while the agent works steers it, and the text of the answer comes above the prompt.
    chat.type("weather in Tokyo\r")
    chat.wait_for(f"{WORKS} 2", "m, call 1 1 s")
    chat.type("in Celsius,\x1b\rplease\r")
    chat.wait_for("> in Celsius,\n  please", "  steers turn 2")
    asked.set()
    chat.wait_for("It is 18 °C", WORKS, gone=["sunny"])
    chat.type("a draft")
    answered.set()
    chat.wait_for("and sunny", "> a draft", "2 model calls, 1 tool call")
    steered = [message["content"][0]["text"] for message in standin.calls[2].prompt if message["role"] == "user"]
    assert steered == ["first?", "weather in Tokyo", "in Celsius,\nplease"]

    # What is stopped stays as far as it came, and the conversation goes on.
    chat.type("\r")
    chat.wait_for("Half an ans", WORKS)
    chat.type("\x1b")
    chat.wait_for("Stopping turn 3.", "cut short by a stop", READY)
    assert standin.calls[3].closed.is_set()
    chat.type("/nonsense\r")
    chat.wait_for("There is no command /nonsense", READY)
    chat.type("\x1b[A and on\r")
    chat.wait_for("> /nonsense and on", "Four.", READY)

    # Others are heard, too.
    await send_from_elsewhere(client, name, "Hello from afar")
    chat.wait_for("> Hello from afar  (from elsewhere)", "Five.", READY)
    chat.type("/stop\r")
    chat.wait_for("There is nothing to stop.")
    chat.type("\x04")
    assert chat.finish() == (0, "")
    shown = lines_of(chat)
    assert shown[1:] == [
        "> first?",
        "  ✓ m, call 1 done in N: 10 tokens in, 5 out",
        "One.",
        "  1 model call, 0 tool calls, 10 tokens in, 5 out, N",
        "> weather in Tokyo",
        "> in Celsius,",
        "  please",
        "  steers turn 2",
        "  ✓ m, call 1 done in N: 10 tokens in, 5 out",
        *(line for line in shown if "get_weather" in line),
        "  ✓ m, call 2 done in N: 10 tokens in, 5 out",
        "It is 18 °C and sunny",
        "  2 model calls, 1 tool call, 20 tokens in, 10 out, N",
        "> a draft",
        "Stopping turn 3.",
        "  ✗ m, call 1 stopped after N",
        "Half an ans",
        "  cut short by a stop",
        "  1 model call, 0 tool calls, 0 tokens in, 0 out, N",
        "There is no command /nonsense; /help lists those that there are.",
        "> /nonsense and on",
        "  ✓ m, call 1 done in N: 10 tokens in, 5 out",
        "Four.",
        "  1 model call, 0 tool calls, 10 tokens in, 5 out, N",
        "> Hello from afar  (from elsewhere)",
        "  ✓ m, call 1 done in N: 10 tokens in, 5 out",
        "Five.",
        "  1 model call, 0 tool calls, 10 tokens in, 5 out, N",
        "There is nothing to stop.",
        f"Left N. {COME_BACK} N",
    ]
    # Nowhere in between is the answer gone, or the prompt.
    frames = [frame for _, frame in chat.frames()]
    since = next(i for i, frame in enumerate(frames) if "and sunny" in frame)
    assert [frame for frame in frames[since : since + 40] if "and sunny" not in frame] == []
    [history] = (tmp_path / "state").rglob("history")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+in Celsius,\n+please\n" in history.read_text()


def test_questions_are_asked_in_the_place_of_the_prompt(open_chat: OpenChat, standin: StandIn, name: str) -> None:
    asked = threading.Event()
    standin.play(held(asked, calls(TOKYO, PARIS)), calls(TOKYO), text("Nice, everywhere."))
    chat = open_chat("--id", name, "--approve", "Weather?")
    chat.wait_for("m, call 1")
    chat.type("a draft")
    chat.wait_for("> a draft")
    asked.set()
    prompt = "    Allow it? (y, or n and why)"
    chat.wait_for('? get_weather(city="Tokyo") waits for an approval', prompt, gone=["a draft", "Paris"])
    chat.type("what?\r")
    chat.wait_for(f"{prompt} what?")
    chat.type("y\r")
    chat.wait_for(f"{prompt} y", '✓ get_weather(city="Tokyo")', '? get_weather(city="Paris") waits for an approval')
    chat.type("n too far\r")
    chat.wait_for("refused: too far")
    # Another chat joins in the first turn, and answers the second question about Tokyo.
    other = open_chat("--id", name, "--no-worker")
    other.wait_for("is under way", "> Weather?", '? get_weather(city="Tokyo") waits for an approval', prompt)
    other.type("y\r")
    other.wait_for("Nice, everywhere.", READY)
    chat.wait_for("It was answered elsewhere, or too late.", "Nice, everywhere.", "> a draft")
    assert [result["output"]["value"] for result in standin.calls[1].tool_results][1] == (
        "ToolError: a person did not allow this call of get_weather: too far"
    )


# ── Leaving, kills, ends ─────────────────────────────────────────────────────────────────────────────────


def test_whoever_leaves_or_is_killed_comes_back_to_the_turn_under_way(
    open_chat: OpenChat, standin: StandIn, name: str
) -> None:
    done = threading.Event()
    half = begun("Half an ans")
    standin.play(text("One."), hang(*half), hang(*half), parts(*half, done, *ended("wer.")))
    first = open_chat("--id", name, "first?")
    first.wait_for("One.", READY)
    first.type("second?\r")
    first.wait_for("Half an ans", WORKS)
    first.type("half a message\x03")
    assert first.finish()[0] == 130
    assert f"Left {name}. {COME_BACK} {name}" in "\n".join(first.scrolled)
    assert first.has_cursor()

    victim = open_chat("--id", name)
    victim.wait_for(f"Run {name} (process {victim.process.pid}) is under way", "> first?", "One.", "> second?")
    victim.wait_for("Half an ans", f"{WORKS} 2")
    victim.process.kill()

    last = open_chat("--id", name)
    last.wait_for("> second?", "Half an ans", WORKS)
    last.type("\x1b[A")
    last.wait_for("> half a message")
    done.set()
    last.wait_for("Half an answer.", "> half a message", gone=["call 1 1"])
    assert [line for line in lines_of(last) if "steps" not in line][1:4] == ["> first?", "One.", "> second?"]
    assert len(standin.calls) == 4


def test_a_chat_outlives_its_server(folder: Path, open_chat: OpenChat, standin: StandIn) -> None:
    def kill_server() -> None:
        os.kill(int((folder / ".temporal" / "server.pid").read_text()), signal.SIGKILL)

    answered = threading.Event()
    standin.play(text("One."), held(answered, text("Two.")))
    chat = open_chat("--id", "trip", "first?", folder=folder)
    chat.wait_for("One.", READY)
    kill_server()
    chat.type("second?\r")  # which is safe when the server is back
    chat.wait_for("> second?")
    standin.wait_for(calls=2)
    chat.wait_for(WORKS)
    kill_server()
    answered.set()
    chat.wait_for("Two.", READY)
    chat.type("\x04")
    assert chat.finish()[0] == 0


async def test_a_conversation_that_is_over_goes_on_with_the_next_message(
    client: Client, open_chat: OpenChat, standin: StandIn, name: str
) -> None:
    standin.play(text("One."), text("Two."), status(400, message="no such thing"), text("Four."))
    chat = open_chat("--id", name, "--idle-limit", "1s", "first?")
    over = "The conversation is over. Your next message goes on with it."
    chat.wait_for("One.", over, READY)
    chat.type("second?\r")
    chat.wait_for("Two.", READY)
    asked = [message["content"][0]["text"] for message in standin.calls[1].prompt if message["role"] != "system"]
    assert asked == ["first?", "One.", "second?"]
    chat.type("third?\r")
    chat.wait_for("✗ the turn failed: HTTP 400: no such thing.")
    chat.type("fourth?\r/end\r")
    assert chat.finish()[0] == 0
    assert f"Ended {name}. {COME_BACK} {name}" in "\n".join(chat.scrolled)
    assert "Four." in chat.scrolled
    description = await client.get_workflow_handle(name).describe()
    assert description.status == WorkflowExecutionStatus.COMPLETED


# ── Without a terminal ───────────────────────────────────────────────────────────────────────────────────


def test_through_pipes_each_line_is_a_message_and_each_answer_comes_on_standard_output(
    run_main: RunMain, standin: StandIn, name: str
) -> None:
    standin.play(text("One."), text("Two\nlines."), text("Three."), status(400, message="no such thing"))
    chat = ("--chat", "--model", "m", "--id", name)
    result = run_main(*chat, "first?", input="second?\r\n\n  third?", env=standin.environment)
    assert (result.returncode, result.stdout) == (0, "One.\nTwo\nlines.\nThree.\n")
    assert result.stderr.splitlines()[-1] == f"Left {name}. {COME_BACK} {name}"
    asked = [message["content"][0]["text"] for message in standin.calls[2].prompt if message["role"] == "user"]
    assert asked == ["first?", "second?", "third?"]

    # It comes back without what was said; the first failure ends it.
    result = run_main(*chat, input="fourth?\nfifth?\n", env=standin.environment)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("Error: the turn failed: HTTP 400: no such thing.")
    assert len(standin.calls) == 4


def test_a_terminal_without_control_codes_has_a_chat_all_the_same(
    open_chat: OpenChat, open_terminal: OpenTerminal, standin: StandIn, name: str
) -> None:
    standin.play(hang(), text("Two."))
    env = {**standin.environment, "TERM": "dumb"}
    chat = open_terminal("--chat", "--model", "m", "--id", name, "first?", env=env)
    chat.wait_for("  > m, call 1")
    chat.type("/stop\n")
    chat.wait_for("Stopping turn 1.", "cut short by a stop")
    chat.type("second?\n")
    chat.wait_for("Two.", "tokens in, 5 out")
    chat.type("\x04")
    assert chat.finish()[0] == 0
    assert not re.search(rb"[^\r\n\x08 -~\x80-\xff]", chat.written)


def test_only_a_chat_at_a_terminal_loads_the_prompt() -> None:
    code = "import sys, main; sys.exit('prompt_toolkit' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
