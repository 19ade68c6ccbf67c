"""examples/web.py, as the npm package `ai` and a browser use it, and as others would like to.

One Temporal server, one web server with its worker, one browser and one process of node are shared by all tests.
"""

import asyncio
import fcntl
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
from conftest import ROOT, TEMPORAL_SETTINGS
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from processes import end, kill, line_with
from servers import dev_server
from standin import StandIn, cut_off, held, parts, status, text, text_parts, tools
from temporalio.client import Client

from app import demo, devserver
from bridge.heartbeats import LIVE_LIMIT

pytestmark = pytest.mark.xdist_group("web")

AI_VERSION = "7.0.173"
"""Of the npm package `ai`."""

SECONDS = 30.0
"""For what takes less than one, to tell that it works from that it hangs on a loaded machine."""

END = {"type": "text-end", "id": "t"}

type Json = dict[str, Any]


class Web:
    """The example's process, its Temporal server, and its model."""

    def __init__(self, folder: Path, standin: StandIn) -> None:
        self.standin = standin
        self._stack = ExitStack()
        self._folder = folder
        self.address = ""
        self.url = ""
        self.process: subprocess.Popen[str] | None = None
        self.start_temporal()
        self.start()

    def start_temporal(self) -> None:
        # Runs continue as new often, and at once.
        often = ("limit.historyCount.suggestContinueAsNew=40", 'history.workflowIdReuseMinimalInterval="0s"')
        settings = [word for value in often for word in ("--dynamic-config-value", value)]
        database = ("--db-filename", str(self._folder / "temporal.db"), *devserver.KILLABLE)
        port = int(self.address.rpartition(":")[2] or 0)
        self.temporal, self.address = self._stack.enter_context(
            dev_server(*devserver.FAST, *settings, *database, port=port, env={"GOMAXPROCS": "1", "GOGC": "400"})
        )

    @property
    def environment(self) -> dict[str, str]:
        return clean_environment({"TEMPORAL_ADDRESS": self.address, **self.standin.environment})

    def start(self, *arguments: str) -> None:
        port = self.url.rpartition(":")[2] or "0"
        self.process, self.url = start_web(self.environment, "--port", port, *arguments)

    def runs_that_continued(self) -> int:
        async def count() -> int:
            client = await Client.connect(self.address)
            return (await client.count_workflows('ExecutionStatus = "ContinuedAsNew"')).count

        return asyncio.run(count())

    def kill(self) -> None:
        assert self.process is not None
        end(self.process)

    def close(self) -> None:
        self.kill()
        self._stack.close()


def clean_environment(env: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith((*TEMPORAL_SETTINGS, "WEB_"))}
    return {**clean, **env}


def start_web(env: dict[str, str], *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start the example, and wait until it serves. Returns its process and its address."""
    command = [sys.executable, str(ROOT / "examples" / "web.py"), *arguments]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    found = re.match(r"Open (http://[\d.:]+)/", line_with(process, "Open http://"))
    assert found is not None
    return process, found[1]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with StandIn().serving() as standin:
        server = Web(tmp_path_factory.mktemp("web"), standin)
        yield server
        server.close()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "web" in request.fixturenames:
        standin = request.getfixturevalue("web").standin
        standin._script.clear()
        standin.calls.clear()
        standin.lookups.clear()


class Paused:
    """An answer of two halves; the second one comes when the test wants it."""

    def __init__(self, first: str, second: str) -> None:
        self.release = threading.Event()
        self.first, self.whole = first, first + second
        start, one, two, _ = text_parts(first, second)
        self.reply = parts(start, one, self.release, two, END, demo.finish("stop"))


def thought(words: str) -> list[demo.Part]:
    start, delta, end = ({"type": f"reasoning-{kind}", "id": "r"} for kind in ("start", "delta", "end"))
    return [start, {**delta, "delta": words}, end]


# ── The npm package ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def npm_package() -> Path:
    """The file of the npm package `ai`, which is installed once for all sessions."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no node, or no npm")
    folder = Path(tempfile.gettempdir()) / f"durable-agent-ai-{AI_VERSION}"
    folder.mkdir(exist_ok=True)
    module = folder / "node_modules" / "ai" / "dist" / "index.js"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            (folder / "package.json").write_text('{"private": true}')
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"ai@{AI_VERSION}"]
            installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
            if installed.returncode != 0:
                pytest.skip(f"ai@{AI_VERSION} cannot be installed: {installed.stderr.strip()[-200:]}")
            (folder / "installed").touch()
    return module


class Node:
    """Clients of the npm package, in a process of their own."""

    def __init__(self, module: Path, url: str) -> None:
        self.url = url
        first = httpx.get(f"{url}/", follow_redirects=False)
        cookie = first.headers["set-cookie"].partition(";")[0]
        self.http = httpx.Client(base_url=f"{url}/api/chat", headers={"Cookie": cookie}, timeout=60)
        script = Path(__file__).parent / "web_client.mjs"
        command = ["node", str(script), module.as_uri(), f"{url}/api/chat", cookie]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines = defaultdict[str, queue.Queue[Json]](queue.Queue)
        self.latest: dict[str, list[Json]] = {}
        """The messages of each chat."""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "messages" in told:
                self.latest[told["chat"]] = told["messages"]
            self._lines[told["chat"]].put(told)

    def do(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def until(self, chat: str, wanted: Callable[[Json], object], seconds: float = SECONDS) -> Json:
        """The next line of a chat that is wanted; the ones before it are skipped."""
        end, seen = time.monotonic() + seconds, list[Json]()
        while (left := end - time.monotonic()) > 0:
            try:
                line = self._lines[chat].get(timeout=left)
            except queue.Empty:
                break
            seen.append(line)
            if wanted(line):
                return line
        raise AssertionError(f"it never came, after {seen[-5:]}")

    def until_says(self, chat: str, words: str) -> Json:
        """Until the latest text of the assistant is this. Returns the message."""

        def says(line: Json) -> bool:
            return bool(line.get("messages")) and last_text(line["messages"][-1]) == words

        message: Json = self.until(chat, says)["messages"][-1]
        return message

    def until_done(self, chat: str, what: str = "send") -> str:
        line = self.until(chat, lambda line: line.get("done") == what)
        return str(line["status"])

    def messages(self, id: str) -> list[Json]:
        """As a page that is loaded anew gets them."""
        response = self.http.get(f"/{id}")
        assert response.status_code == 200, response.text
        messages: list[Json] = response.json()
        return messages

    def close(self) -> None:
        end(self._process)
        self.http.close()


def last_text(message: Json) -> str | None:
    texts = [part["text"] for part in message["parts"] if part["type"] == "text"]
    return texts[-1] if texts else None


def essence(message: Json) -> list[Json]:
    """The parts of a message, without what only a client that has followed them knows."""
    kept = ("type", "text", "state", "toolCallId", "input", "output", "errorText", "id", "parts")
    parts = [{key: part[key] for key in kept if part.get(key) is not None} for part in message["parts"]]
    return [part if part["type"] == "steering-message" else {**part, "id": ""} for part in parts]


@pytest.fixture(scope="module")
def node(npm_package: Path, web: Web) -> Iterator[Node]:
    clients = Node(npm_package, web.url)
    yield clients
    clients.close()


@pytest.fixture
def chat() -> str:
    """The id of a conversation, and of its clients."""
    return uuid.uuid4().hex


def check_same(node: Node, chat: str, *names: str) -> list[Json]:
    """What clients have made of the chunks is what a page that is loaded anew gets. Returns the messages."""
    loaded = node.messages(chat)
    for name in names:
        assert [(message["id"], essence(message)) for message in node.latest[name]] == [
            (message["id"], essence(message) if message["role"] == "assistant" else ANY) for message in loaded
        ]
    return loaded


def test_use_chat_reads_an_answer_live_and_another_client_joins_in_the_middle(node: Node, web: Web, chat: str) -> None:
    answer = Paused("Half an ", "answer.")
    web.standin.play(answer.reply, text("Twice."))
    node.do(chat=chat, send={"text": "first?"})
    node.until_says(chat, "Half an ")
    node.do(chat="joins", id=chat, messages=node.messages(chat), resume=True)
    node.until_says("joins", "Half an ")
    answer.release.set()
    assert {node.until_done(chat), node.until_done("joins", "resume")} == {"ready"}
    assert last_text(check_same(node, chat, chat, "joins")[-1]) == answer.whole
    node.do(chat=chat, send={"text": "second?"})
    assert node.until_done(chat) == "ready"
    prompt = [part["text"] for message in web.standin.calls[-1].prompt[1:] for part in message["content"]]
    assert prompt == ["first?", answer.whole, "second?"]
    assert [last_text(message) for message in check_same(node, chat, chat)] == [*prompt, "Twice."]
    node.do(chat="joins", resume=True)  # there is nothing to join any more
    assert node.until_done("joins", "resume") == "ready"
    assert node.http.get(f"/{chat}/stream").status_code == 204


def test_use_chat_lets_a_person_allow_and_refuse_tool_calls(node: Node, web: Web, chat: str) -> None:
    web.standin.play(
        tools(("a", "get_weather", {"city": "Tokyo"}), ("b", "get_weather", {"city": "Paris"})), text("One of two.")
    )
    node.do(chat=chat, send={"text": "weather?"}, body={"approve": True})
    assert node.until_done(chat) == "ready"
    calls = [part for part in node.latest[chat][-1]["parts"] if part["type"] == "tool-get_weather"]
    assert [(call["state"], call["input"]) for call in calls] == [
        ("approval-requested", {"city": "Tokyo"}),
        ("approval-requested", {"city": "Paris"}),
    ]
    # While it waits for a person, a client that joins gets as far.
    node.do(chat="joins", id=chat, messages=node.messages(chat), resume=True)
    node.until_done("joins", "resume")
    check_same(node, chat, chat, "joins")
    node.do(chat=chat, approve={"id": calls[1]["approval"]["id"], "approved": False, "reason": "too far"})
    node.until_done(chat, "approve")
    node.do(chat=chat, approve={"id": calls[0]["approval"]["id"], "approved": True})  # and sends both by itself
    node.until_says(chat, "One of two.")
    node.until(chat, lambda line: "finished" in line)
    done = {part["toolCallId"]: part for part in check_same(node, chat, chat)[-1]["parts"] if "toolCallId" in part}
    assert done["a"]["output"]["temperature"] == "18.4 °C"
    assert (done["b"]["state"], done["b"]["approval"]["reason"]) == ("output-denied", "too far")
    assert web.standin.lookups == ["Tokyo"]


def test_use_chat_takes_back_the_text_of_an_attempt_that_failed(node: Node, web: Web, chat: str) -> None:
    release = threading.Event()
    start, words, _ = text_parts("Wrong words")
    web.standin.play(
        tools(("a", "get_weather", {"city": "Nowhere"})),
        cut_off(*thought("Wrong thoughts"), start, words, release),
        parts(*thought("Right."), *text_parts("Nowhere is nowhere."), demo.finish("stop")),
    )
    node.do(chat=chat, send={"text": "weather?"})
    node.until_says(chat, "Wrong words")
    release.set()
    assert node.until_done(chat) == "ready"
    [_, answered] = check_same(node, chat, chat)
    assert [part["text"] for part in answered["parts"] if "text" in part] == ["Right.", "Nowhere is nowhere."]
    [failed] = [part for part in answered["parts"] if "toolCallId" in part]
    assert failed["state"] == "output-error"
    assert "Nowhere" in failed["errorText"]
    assert "ToolError" not in failed["errorText"]


def test_use_chat_reads_a_text_that_is_too_long_for_a_heartbeat(node: Node, web: Web, chat: str) -> None:
    more, end = threading.Event(), threading.Event()
    start, one, two, stop = text_parts("one " * 4000, "two " * 4000)
    web.standin.play(parts(start, one, more, two, end, stop, demo.finish("stop")))
    whole = one["delta"] + two["delta"]
    node.do(chat=chat, send={"text": "much?"})
    node.until_says(chat, one["delta"])
    more.set()
    node.until_says(chat, whole)  # of which a heartbeat has only the end
    node.do(chat="joins", id=chat, messages=node.messages(chat), resume=True)
    node.until_says("joins", f"…{whole[-LIVE_LIMIT:]}")
    end.set()
    assert {node.until_done(chat), node.until_done("joins", "resume")} == {"ready"}
    assert last_text(check_same(node, chat, chat, "joins")[-1]) == whole


def test_use_chat_steers_and_the_run_continues_as_new_meanwhile(node: Node, web: Web, chat: str) -> None:
    release = threading.Event()
    continued = web.runs_that_continued()
    looks = [tools((f"call-{i}", "get_weather", {"city": "Tokyo"})) for i in range(6)]
    web.standin.play(held(release, looks[0]), *looks[1:], text("In Fahrenheit."))
    node.do(chat=chat, send={"text": "weather?"})
    web.standin.wait_for(calls=1)
    node.do(chat=chat, send={"text": "in Fahrenheit"})
    while len(node.messages(chat)) < 3:  # it waits to be read
        pass
    release.set()
    node.until_says(chat, "In Fahrenheit.")
    assert [node.until_done(chat), node.until_done(chat)] == ["ready", "ready"]
    [asked, answered] = node.messages(chat)
    kinds = [part["type"] for part in answered["parts"]]
    assert kinds[:4] == ["step-start", "tool-get_weather", "steering-message", "step-start"]
    assert kinds.count("tool-get_weather") == 6
    assert web.runs_that_continued() > continued
    [live] = [message for message in node.latest[chat] if message["id"] == answered["id"]]
    assert essence(live) == essence(answered)
    assert node.latest[chat][0]["id"] == asked["id"]


def test_use_chat_is_told_of_stops_and_failures(node: Node, web: Web, chat: str) -> None:
    answer = Paused("Half an ", "answer.")
    web.standin.play(answer.reply, status(400, message="no such thing"), text("Here."))
    node.do(chat=chat, send={"text": "first?"})
    node.until_says(chat, "Half an ")
    assert node.http.post(f"/{chat}/stop").json() == {"stopped": 1}
    assert node.until_done(chat) == "ready"
    assert check_same(node, chat, chat)[-1]["metadata"] == {"turn": 1, "outcome": "stopped"}
    assert node.http.post(f"/{chat}/stop").json() == {"stopped": None}
    answer.release.set()
    node.do(chat=chat, send={"text": "second?"})
    assert "no such thing" in node.until(chat, lambda line: "error" in line)["error"]
    assert node.until_done(chat) == "error"
    assert node.messages(chat)[-1]["metadata"]["outcome"] == "failed"
    node.do(chat=chat, send={"text": "third?"})
    assert node.until_done(chat) == "ready"
    node.do(chat=chat, regenerate=True)
    assert "What was said stays" in node.until(chat, lambda line: "error" in line)["error"]
    assert [last_text(message) for message in node.messages(chat)][::2] == ["first?", "second?", "third?"]


# ── The page ─────────────────────────────────────────────────────────────────────────────────────────────

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Reader:
    """A person with a browser. Everything that the page complains about fails the test."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.problems = page, list[str]()
        page.set_default_timeout(SECONDS * 1000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        # Not what Chromium says of requests to a server that is not there.
        page.on("console", lambda said: self.problems.append(said.text) if "Failed to load" not in said.text else None)
        page.goto(url)

    def say(self, words: str) -> None:
        self.page.get_by_role("textbox", name="Message").fill(words)
        self.page.keyboard.press("Enter")

    def sees(self, words: str, seconds: float = SECONDS) -> None:
        """Wait for the latest text of the agent."""
        answer = self.page.locator(".assistant .text").last
        expect(answer).to_have_text(words, timeout=seconds * 1000)

    def is_told(self, words: str, seconds: float = SECONDS) -> None:
        expect(self.page.get_by_role("status")).to_have_text(words, timeout=seconds * 1000)

    def heard(self) -> list[str]:
        """What a screen reader was given to read."""
        return self.page.locator("#announcer p").all_text_contents()


@pytest.fixture
def open_page(browser: Browser, web: Web) -> Iterator[Callable[..., Reader]]:
    """Open the page: in the tab of another reader, or as a person of its own."""
    readers, contexts = list[Reader](), list[BrowserContext]()

    def open_page(beside: Reader | None = None) -> Reader:
        if beside is None:
            contexts.append(browser.new_context())
        url = f"{web.url}/" if beside is None else beside.page.url
        readers.append(Reader((beside.page.context if beside else contexts[-1]).new_page(), url))
        return readers[-1]

    yield open_page
    problems = [problem for reader in readers for problem in reader.problems]
    for context in contexts:
        context.close()
    assert problems == []


def test_a_person_reads_an_answer_live_reloads_it_has_two_tabs_and_stops_it(
    open_page: Callable[..., Reader], web: Web
) -> None:
    answer, second = Paused("Half an ", "answer."), Paused("A second ", "one.")
    web.standin.play(answer.reply, second.reply)
    reader = open_page()
    reader.say("first?")
    reader.sees("Half an")
    reader.is_told("The agent works…")
    reader.page.reload()
    reader.sees("Half an")
    other = open_page(beside=reader)
    other.sees("Half an")
    answer.release.set()
    for tab in (reader, other):
        tab.sees(answer.whole)
        tab.is_told("")
    # Read out once, and as a whole, to who has followed it.
    assert other.heard() == [answer.whole]
    reader.say("second?")
    other.sees("A second")  # it need not ask for it
    other.page.get_by_role("button", name="Stop").click()
    for tab in (reader, other):
        expect(tab.page.locator(".end").last).to_have_text("Stopped.")
        expect(tab.page.get_by_role("button", name="Stop")).to_be_hidden()
        expect(tab.page.locator(".user .bubble")).to_have_text(["first?", "second?"])
    web.standin.play(text("A third one."))
    reader.say("third?")
    other.sees("A third one.")
    second.release.set()
    late = open_page(beside=reader)
    late.sees("A third one.")
    assert late.heard() == []  # what was said before is not read out


def test_a_person_is_asked_with_the_keyboard_alone_and_steers_meanwhile(
    open_page: Callable[..., Reader], web: Web
) -> None:
    web.standin.play(
        tools(("a", "get_weather", {"city": "Tokyo"}), ("b", "get_weather", {"city": "Paris"})), text("One of two.")
    )
    reader = open_page()
    reader.page.get_by_role("checkbox").check()
    reader.say("weather in two cities?")
    questions = reader.page.get_by_role("group", name="May the agent make this call?")
    expect(questions).to_have_count(2)
    expect(questions.first).to_be_focused()
    reader.is_told("The agent waits for your answer.")
    reader.say("and be brief")
    expect(reader.page.get_by_text("The agent reads this when it comes to it.")).to_be_visible()
    questions.first.focus()
    reader.page.keyboard.press("Tab")  # to Allow
    reader.page.keyboard.press("Enter")
    expect(questions).to_have_count(1)
    expect(reader.page.get_by_role("textbox", name="Message")).to_be_focused()
    questions.get_by_role("textbox").fill("too far")
    reader.page.keyboard.press("Enter")
    reader.sees("One of two.")
    expect(reader.page.locator(".tool summary .how")).to_have_text(["done", re.compile("refused")])
    expect(reader.page.locator(".tool pre").last).to_have_text("You refused: too far")
    # Where it was read: after the calls, before the answer.
    expect(reader.page.locator(".parts > .part").nth(2)).to_contain_text("and be brief")
    assert web.standin.lookups == ["Tokyo"]
    assert reader.heard()[-1] == "One of two."


def test_the_words_of_a_model_are_text_and_never_code(open_page: Callable[..., Reader], web: Web) -> None:
    evil = "<img src=x onerror=\"document.title='gone'\"> **bold** [here](javascript:alert(1)) [there](https://example.com/)"
    web.standin.play(
        tools(("a", "get_weather", {"city": "<b>Tokyo</b>"})), text(f"{evil}\n\n```\n<script>1</script>\n```")
    )
    reader = open_page()
    reader.say("<i>weather</i>?")
    expect(reader.page.locator(".assistant .text pre")).to_have_text("<script>1</script>")
    expect(reader.page.locator(".assistant .text p")).to_contain_text("<img src=x")
    expect(reader.page.locator(".assistant strong")).to_have_text("bold")
    expect(reader.page.locator(".tool .call")).to_contain_text("<b>Tokyo</b>")
    assert reader.page.locator("#log img, #log b, #log i, #log script").count() == 0
    assert [link.get_attribute("href") for link in reader.page.locator("#log a").all()] == ["https://example.com/"]
    # Whatever comes into the page all the same is not run.
    reader.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    assert reader.page.evaluate("window.ran") is None
    [problem] = reader.problems
    assert "Content Security Policy" in problem
    reader.problems.clear()


# ── Others ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_is_its_users_and_other_sites_get_nothing(web: Web, chat: str) -> None:
    web.standin.play(text("A secret."))
    said = {"id": chat, "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "psst"}]}]}
    with httpx.Client(base_url=web.url) as mine, httpx.Client(base_url=web.url) as other:
        for user in (mine, other):
            assert user.get("/").status_code == 303
            page = user.get("/")
            assert page.status_code == 200
            assert "default-src 'none'" in page.headers["content-security-policy"]
        cookie = mine.get("/", headers={"Cookie": ""}).headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        for _ in range(2):  # the second time, it counts no more, and has the recorded answer
            assert "A secret." in mine.post("/api/chat", json=said).text
        # With the same id, another user has another conversation.
        assert [message["role"] for message in mine.get(f"/api/chat/{chat}").json()] == ["user", "assistant"]
        assert other.get(f"/api/chat/{chat}").json() == []
        assert other.get(f"/api/chat/{chat}/stream").status_code == 204
        assert other.post(f"/api/chat/{chat}/stop").status_code == 404
        # Another site, in the browser of the same user; and a name of an attacker's that leads to loopback.
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Host": f"evil.example:{mine.base_url.port}"},
        ):
            assert mine.post("/api/chat", json=said, headers=headers).status_code == 403, headers
            assert mine.get(f"/api/chat/{chat}", headers=headers).status_code == 403, headers
        assert mine.get("/", headers={"Host": "evil.example"}).status_code == 403
        assert mine.get(f"/api/chat/{chat}", headers={"Origin": web.url}).status_code == 200
        assert httpx.get(f"{web.url}/api/chat/{chat}").status_code == 401
    assert len(web.standin.calls) == 1


def test_what_is_no_message_is_refused_in_one_line(web: Web, chat: str) -> None:
    with httpx.Client(base_url=web.url, follow_redirects=True) as mine:
        mine.get("/")

        def post(**changes: object) -> tuple[int, str]:
            said = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
            response = mine.post("/api/chat", json={"id": chat, "messages": [{**said, **changes}]})
            return response.status_code, response.text

        assert post(parts=[]) == (400, "A message has 1 to 1,000,000 bytes of text.")
        assert post(parts=[{"type": "text", "text": "é" * 500_001}])[0] == 413
        status, problem = post(role="nobody")
        assert status == 400
        assert "\n" not in problem
        assert mine.post("/api/chat", content=b"no JSON").status_code == 400
        assert mine.post("/api/chat", content=bytes(33 * 1024 * 1024)).status_code == 413
        allowed = {"type": "tool-get_weather", "toolCallId": "a", "state": "approval-responded", "input": {}}
        approval = {"id": "made-up", "approved": True}
        assert post(role="assistant", parts=[{**allowed, "approval": approval}]) == (
            404,
            "There is no such conversation.",
        )
    assert web.standin.calls == []


def test_with_a_token_only_who_knows_it_gets_in(web: Web) -> None:
    token = "correct-horse-battery"
    env = {**web.environment, "WEB_TOKEN": token}
    process, url = start_web(env, "--port", "0")
    try:
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, params={"token": "wrong"}).status_code == 401
        # A cookie of a server without a token is nothing here.
        stale = httpx.get(web.url).headers["set-cookie"].partition(";")[0]
        assert httpx.get(f"{url}/api/chat/x", headers={"Cookie": stale}).status_code == 401
        with httpx.Client(base_url=url) as user:
            assert user.get("/", params={"token": token}).headers["location"] == "/"
            assert user.get("/").status_code == 200
            assert user.get("/api/chat/x").json() == []
        bearer = {"Authorization": f"Bearer {token}", "Host": "chat.example.com"}
        assert httpx.get(f"{url}/api/chat/x", headers=bearer).json() == []
        assert httpx.get(f"{url}/api/chat/x", headers={"Authorization": "Bearer wrong"}).status_code == 401
        with httpx.stream("GET", f"{url}/api/chat/x/stream?from=0", headers=bearer) as stream:
            assert next(stream.iter_lines()).startswith(":")
            process.send_signal(signal.SIGINT)  # a stream does not hold it
            assert process.communicate(timeout=SECONDS)[1] == ""
        assert process.returncode == 0
    finally:
        end(process)


@pytest.mark.parametrize(
    ("arguments", "token", "problem"),
    [
        (
            ["--host", "0.0.0.0"],
            "short",
            r"0\.0\.0\.0 needs a token: set WEB_TOKEN to a random text of at least 16 characters",
        ),
        (
            ["--port", "TAKEN"],
            "",
            r"cannot listen on 127\.0\.0\.1:\d+: Address already in use.*; choose another --port",
        ),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(arguments: list[str], token: str, problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, str(ROOT / "examples" / "web.py"), *arguments]
        result = subprocess.run(
            [port if word == "TAKEN" else word for word in command],
            env=clean_environment({"WEB_TOKEN": token}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert re.fullmatch(f"Error: {problem}\n", result.stderr), result.stderr


# ── Kills, last, since they leave no worker ──────────────────────────────────────────────────────────────


def test_everything_is_killed_in_the_middle_of_an_answer_and_the_page_goes_on(
    open_page: Callable[..., Reader], web: Web, request: pytest.FixtureRequest
) -> None:
    def start_worker() -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "main.py"), "--worker"]
        worker = subprocess.Popen(command, env=web.environment, stderr=subprocess.DEVNULL)
        request.addfinalizer(worker.kill)
        return worker

    first, again = Paused("Half an ", "answer."), Paused("Half an answer", " after all.")
    web.standin.play(first.reply, again.reply, text(again.whole), text("Two."))
    reader = open_page()
    reader.say("first?")
    reader.sees("Half an")
    kill(web.temporal)
    reader.is_told("The Temporal server cannot be reached. Waiting for it…")
    web.kill()
    reader.is_told("The connection is lost. Connecting again…")
    reader.sees("Half an")  # it stays
    reader.say("second?")  # and this is delivered when there is somebody to take it
    web.start_temporal()
    web.start("--no-worker")
    reader.is_told("Waiting for a worker…")
    worker = start_worker()
    reader.sees("Half an answer")  # of another attempt, which says at first what the one before has said
    worker.kill()
    start_worker()  # which is told by the server only after the heartbeat timeout
    reader.is_told("Waiting for a worker…")
    reader.sees("Half an answer")
    again.release.set()
    reader.sees("Two.")
    expect(reader.page.locator(".user .bubble")).to_have_text(["first?", "second?"])
    assert reader.page.locator(".assistant .text").first.text_content() == again.whole
    reader.is_told("")
    first.release.set()
