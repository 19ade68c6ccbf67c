"""What README.md, CONTRIBUTING.md and docs/ claim: their links, file map, code, figures and commands.

The commands are taken from the text and run by a shell as they stand there; what would take minutes, with smaller
numbers put into the same text.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
from conftest import ROOT, StartAgent, StartServer, copy_sample
from processes import line_with
from standin import StandIn
from temporalio.client import Client

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = DOCUMENTS[0].read_text()
TEXT = "\n".join(document.read_text() for document in DOCUMENTS)
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)

# Whole blocks, lines that stand above what comes of them, and what is named in the text.
COMMANDS: set[str] = {
    *(block.strip() for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)),
    *re.findall(r"^\$ (.*)", TEXT, re.MULTILINE),
    *(code for code in re.findall(r"`([^`\n]+)`", PROSE) if re.match(r"uv (run|add)\b|for |bash ", code)),
}
NOT_RUN = {
    "uv run pytest -m by_hand": "these are the tests marked `by_hand`, below",
    "bash .ci/run": "this is what runs all tests, this one too",
}

_taken: set[str] = set()


def take(pattern: str) -> str:
    """The one command that the pattern is found in, for a test below to run."""
    found = [command for command in COMMANDS if re.search(pattern, command)]
    assert len(found) == 1, f"{pattern!r} is found in {found}"
    _taken.update(found)
    return found[0]


def change(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, f"{old!r} is no longer in {text!r}"
        text = text.replace(old, new)
    return text


def copy(folder: Path, *files: str) -> None:
    copy_sample(folder)
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, folder / file)


PARIS = "Paris: 15.1 °C, light drizzle, wind 10.8 km/h; population 2,138,551.\n"

type Start = Callable[..., subprocess.Popen[str]]
type Run = Callable[..., str]


@pytest.fixture
def start(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a text in a shell, where `uv run` takes what it runs from the environment of the tests."""
    processes: list[subprocess.Popen[str]] = []
    uv = tmp_path_factory.mktemp("bin") / "uv"
    uv.write_text('#!/bin/sh\n[ "$1" = run ] && shift && case $1 in *.py) exec python "$@";; *) exec "$@";; esac\n')
    uv.chmod(0o755)
    path = os.pathsep.join([str(uv.parent), str(Path(sys.executable).parent), os.environ["PATH"]])

    def start(text: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", "-euc", text],
            cwd=cwd,
            env={**environment, "PATH": path, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what did not heed it


@pytest.fixture
def run(start: Start) -> Run:
    """Run a text in a shell, which has to succeed. Returns what it writes to standard output."""

    def run(text: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
        process = start(text, cwd, env)
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, f"{out}\n{err}"
        assert "Traceback" not in err
        return out

    return run


# ── The text ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_link_inside_the_repository_leads_somewhere() -> None:
    links = [
        document.parent / link.partition("#")[0]
        for document in DOCUMENTS
        for link in re.findall(r"\]\(([^)]+)\)", document.read_text())
        if "://" not in link
    ]
    assert len(links) > 5
    assert [link for link in links if not link.exists()] == []


def test_no_line_of_the_text_is_long() -> None:
    lines = [line for line in PROSE.splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > 120] == []


def test_the_file_map_has_every_file() -> None:
    mapped = [
        name for line in README.splitlines() if line.startswith("| [") for name in re.findall(r"\]\((.*?)\)", line)
    ]
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))}
    assert sorted(mapped) == sorted({path.name for path in ROOT.glob("*.py")} | folders)


def test_the_code_in_it_is_code_that_runs() -> None:
    sources = "\n".join(
        path.read_text()
        for folder in (".", "tests", "tests/copied", "examples")
        for path in (ROOT / folder).glob("*.py")
    )
    lines = [line.strip() for line in sources.splitlines()]
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        wanted = [line.strip() for line in block.strip().splitlines()]
        starts = (i for i, line in enumerate(lines) if line == wanted[0])
        assert any(lines[i : i + len(wanted)] == wanted for i in starts), block


def test_every_command_is_run_by_a_test_or_it_says_here_why_not() -> None:
    assert _taken | set(NOT_RUN) == COMMANDS
    assert _taken.isdisjoint(NOT_RUN)


# ── Runs of the sample ───────────────────────────────────────────────────────────────────────────────────

QUESTION = 'main.py "What is the weather in Tokyo?"'
TOKYO = "Tokyo: 18.4 °C, partly cloudy, wind 12.1 km/h.\n"

SHOWN, SHOWN_AGAIN = take(r'main\.py --id readme "'), take(r"main\.py --id readme$")
LOAD = take(r"benchmarks/load\.py")
FIRST_RUN = take(r"uv run pytest$")
WITH_A_KEY = take(r"^export AI_GATEWAY_API_KEY")
LOOP = take(r"^for ")
TRIP = take(r"--approve --id trip")
GO_ON = take(r"--id trip .And in Paris")
CHAT = take(r"main.py --chat$")
TWO_CITIES = take(r"--id two-cities")
LIST = "uv run python main.py --list"


def test_the_run_that_is_shown_comes_out_as_shown_and_is_joined_by_its_name(run: Run) -> None:
    [block] = [block for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) if SHOWN in block]

    def timeless(lines: str) -> list[str]:
        return re.sub(r"process \d+", "process N", re.sub(r"\d+\.\d s", "0.1 s", lines)).splitlines()

    lines = timeless(run(f"{SHOWN} 2>&1"))
    # The address of the page and how to look back at it are those of the dev server that main.py starts itself.
    shown = [line for line in timeless(block)[1:] if "http://" not in line and "look back" not in line]
    assert len(shown) > 10
    for line in shown:
        assert any(real.startswith(line.removesuffix("…").rstrip()) for real in lines), line
    cities = [line for line in shown if line.startswith(("New York:", "Los Angeles:"))]
    assert run(SHOWN_AGAIN).splitlines() == cities


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on the PATH")
def test_the_first_commands_with_the_real_uv(run: Run) -> None:
    text = change(FIRST_RUN, ("uv run pytest", "uv run pytest --version"))
    assert run(text, env={"PATH": os.environ["PATH"]}) == f"{TOKYO}pytest {pytest.__version__}\n"


def test_with_a_key_and_a_server(run: Run, standin: StandIn, environment: dict[str, str]) -> None:
    address = environment.pop("TEMPORAL_ADDRESS")
    text = change(WITH_A_KEY, ("_KEY=… ", "_KEY=a-key "), ("localhost:7233", address))
    assert run(text, env={**standin.environment, "AI_GATEWAY_API_KEY": ""}) == TOKYO
    assert [call.headers["authorization"] for call in standin.calls] == ["Bearer a-key"] * 2


def test_a_killed_run_asks_again_and_goes_on(start: Start, run: Run) -> None:
    first, again = TRIP.splitlines()

    def ask(command: str) -> tuple[subprocess.Popen[str], int, str]:
        process = start(command)
        number = re.search(r"^Run .*\(process (\d+)\)", line_with(process, "Run "))
        assert number is not None
        return process, int(number[1]), line_with(process, "--yes")

    killed, number, _ = ask(first)
    os.kill(number, signal.SIGKILL)
    killed.wait(60)
    process, _, answer = ask(again)
    run(answer)
    assert process.communicate(timeout=60)[0] == TOKYO
    assert run(GO_ON) == PARIS


def test_a_chat_takes_a_message(run: Run) -> None:
    assert run(f'echo "And in Paris?" | {CHAT}') == PARIS


def test_many_runs_in_a_row(run: Run) -> None:
    assert run(change(LOOP, ("seq 200", "seq 2"))) == TOKYO * 2


def test_a_conversation_through_pipes_is_listed_and_ended(run: Run) -> None:
    cities, end = change(TWO_CITIES, ("uv run python main.py --list\n", "")).splitlines()
    assert run(cities) == f"{TOKYO}{PARIS}"
    listed = f"until {LIST} | grep -F two-cities; do test $SECONDS -lt 30; done"  # visibility is a moment late
    assert re.fullmatch(r"two-cities +waits for your message +What is the weather in Tokyo\?\n", run(listed))
    run(end)


# ── Out of one machine ───────────────────────────────────────────────────────────────────────────────────

SEPARATE_WORKERS = take(r"main\.py --no-worker")
NAMESPACE = take(r"temporal operator namespace create")
PROFILE = take(r"^export TEMPORAL_CONFIG_FILE")
BUILDS = take(r"^TEMPORAL_WORKER_BUILD_ID")
KEY_AND_FOLDER = take(r"^export PAYLOAD_KEY")


def test_a_worker_with_the_key_serves_those_without(run: Run, standin: StandIn, environment: dict[str, str]) -> None:
    text = change(
        SEPARATE_WORKERS,
        ("temporal.example.com:7233", environment.pop("TEMPORAL_ADDRESS")),
        ("uv run python main.py --worker ", "AI_GATEWAY_API_KEY=a-key uv run python main.py --worker &> /dev/null & "),
    )
    # A worker that is stopped exits with 0.
    assert run(f"{text}\nkill $!\nwait $!", env={**standin.environment, "AI_GATEWAY_API_KEY": ""}) == TOKYO
    assert len(standin.calls) == 2


def test_a_namespace_is_made(run: Run) -> None:
    name = uuid.uuid4().hex
    run(change(NAMESPACE, ("--namespace agents", f"--namespace {name}")))
    description = json.loads(run(f"uv run temporal operator namespace describe --namespace {name} --output json"))
    [days] = re.findall(r"--retention (\d+)d", NAMESPACE)
    assert description["config"]["workflowExecutionRetentionTtl"] == f"{int(days) * 24 * 3600}s"


async def test_a_profile_is_read_by_the_command_of_temporal_and_by_a_worker(
    start: Start, client: Client, environment: dict[str, str], tmp_path: Path
) -> None:
    # That it holds for TLS and keys too is in test_growing.py.
    name = uuid.uuid4().hex
    handle = await client.start_workflow("Unknown", id=name, task_queue=name)
    async with asyncio.timeout(30):
        while not [run async for run in client.list_workflows(f'WorkflowId = "{name}"')]:
            pass
    copy(tmp_path)
    address = environment.pop("TEMPORAL_ADDRESS")
    (tmp_path / "temporal.toml").write_text(f'[profile.production]\naddress = "{address}"\n')
    process = start(PROFILE, tmp_path)
    assert line_with(process, "ready") == f"Worker on {address} is ready. Ctrl-C stops it.\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert name in process.communicate(timeout=60)[0]
    await handle.terminate()


def test_a_build_is_made_the_current_one(start: Start, run: Run, start_server: StartServer) -> None:
    # That runs stay with their build, of two, is in test_growing.py.
    env = {"TEMPORAL_ADDRESS": start_server()[1]}
    worker, make_current, describe = BUILDS.splitlines()
    line_with(start(worker, env=env), "is ready")
    # The server may know of it only a moment later.
    run(f"until {make_current}; do test $SECONDS -lt 30; done", env=env)
    described = run(change(describe, ("--build-id 1", "--build-id 2")), env=env)
    assert re.search(r"CurrentSinceTime +(now|\d+ seconds? ago)\n", described)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl, which makes the key")
def test_the_key_and_the_folder_are_taken_by_the_converter(run: Run, tmp_path: Path) -> None:
    code = """
import asyncio
from converter import data_converter

async def main():
    converter = data_converter()
    [payload] = await converter.encode(["a" * 300_000])
    print(len(payload.data), await converter.decode([payload]) == ["a" * 300_000])

asyncio.run(main())
"""
    text = change(KEY_AND_FOLDER, ("/mnt/payloads", str(tmp_path)))
    size, same = run(f"{text}\nuv run python -c {shlex.quote(code)}", ROOT / "tests").split()
    [file] = tmp_path.iterdir()
    assert b"aaaa" not in file.read_bytes()
    assert (int(size) < 1000, same) == (True, "True")


# ── In a browser ─────────────────────────────────────────────────────────────────────────────────────────

WEB, WEB_WITH_A_TOKEN = take(r"examples/web\.py$"), take(r"^export WEB_TOKEN")
WEB_PICTURE = take(r"docs/web_screenshot\.py")


def page_of(process: subprocess.Popen[str]) -> str:
    """The address that a web server says when it is ready."""
    found = re.search(r"http://[\d.:]+/", line_with(process, "Open http://"))
    assert found is not None
    return found[0]


def test_the_web_server_says_where_its_page_is_and_that_it_is_the_demo(start: Start) -> None:
    with httpx.Client(base_url=page_of(start(f"{WEB} --port 0")), follow_redirects=True) as user:
        assert "OFFLINE DEMO" in user.get("/").text


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl, which makes the token")
def test_the_web_server_has_a_token(start: Start) -> None:
    # The tests listen on loopback only.
    url = page_of(start(change(f"{WEB_WITH_A_TOKEN} --port 0", ("0.0.0.0", "127.0.0.1"))))
    assert httpx.get(url).status_code == 401


@pytest.mark.skipif(not any(map(shutil.which, ("chromium", "google-chrome"))), reason="there is no Chromium")
@pytest.mark.by_hand
def test_a_picture_is_taken_of_the_web_page(run: Run, tmp_path: Path) -> None:
    run(f"{WEB_PICTURE} {shlex.quote(str(tmp_path / 'web.png'))}")
    assert (tmp_path / "web.png").read_bytes().startswith(b"\x89PNG")


# ── What has to be installed ─────────────────────────────────────────────────────────────────────────────

ADD_FOR_THE_BRIDGE, ADD_FOR_ENCRYPTION = take(r"uv add vercel"), take(r"uv add cryptography")


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on the PATH")
@pytest.mark.parametrize("command", [ADD_FOR_THE_BRIDGE, ADD_FOR_ENCRYPTION])
def test_packages_are_added(command: str, tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "empty"\nversion = "1"\nrequires-python = ">=3.12"\n')
    # Nothing from the network: neither the packages, which the tests have, nor the newest Python, which uv would fetch.
    env = {**os.environ, "UV_PYTHON": sys.executable}
    added_it = subprocess.run(
        [*shlex.split(command), "--frozen"], cwd=tmp_path, env=env, check=False, capture_output=True, timeout=60
    )
    assert added_it.returncode == 0, added_it.stderr.decode()
    added = tomllib.loads(project.read_text())["project"]["dependencies"]
    here = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = [
        re.sub(r"\[.*?\]", "", pin) for pin in [*here["project"]["dependencies"], *here["dependency-groups"]["dev"]]
    ]
    assert added
    assert [name for name in added if not any(pin == name or pin.startswith(f"{name}==") for pin in pins)] == []


# ── Scripts beside the sample ────────────────────────────────────────────────────────────────────────────

SOAK = take(r"tests/soak\.py")
MARATHON = take(r"tests/marathon\.py")
COVERAGE = take(r"^COVERAGE_PROCESS_START")
RECORD = take(r"tests/record_history\.py")
SCREENSHOT = take(r"docs/screenshot\.py")
BENCHMARK = take(r"benchmarks/run\.py")
LONG_CONVERSATION = take(r"benchmarks/conversation\.py$")
MCP = take(r"examples/mcp_tools\.py")


@pytest.mark.usefixtures("folder")
@pytest.mark.by_hand
def test_the_soak_kills_and_counts(run: Run) -> None:
    # With this seed, the first round is one run, which is killed with its server while it is under way.
    out = run(change(SOAK, ("--kills 60", "--kills 1"), ("--seed 7", "--seed 52")))
    assert re.search(r"^seed 52, \d rounds, 1 kills in .* minutes$", out, re.MULTILINE)
    nothing_wrong = r".* right (\d+), hangs 0, exits with an error 0, completed calls done twice 0,"
    runs, conversations, right = re.findall(rf" runs (\d+), conversations (\d+),{nothing_wrong}", out)[-1]
    assert int(runs) + int(conversations) == int(right) > 0
    assert re.search(r"^seconds from the last kill to the answer: median \d+\.\d, max \d+\.\d$", out, re.MULTILINE)
    assert out.endswith("dev server left behind: no\n")


@pytest.mark.by_hand
def test_the_marathon_runs(run: Run) -> None:
    out = run(change(MARATHON, ("--calls 2000", "--calls 12")))
    assert "answer 'done' after 12 model calls" in out
    assert "lookups: 11\n" in out


@pytest.mark.skipif("COVERAGE_PROCESS_START" in os.environ, reason="lines are being counted already")
@pytest.mark.by_hand
def test_the_lines_that_are_run_are_counted(run: Run, tmp_path: Path) -> None:
    copy(tmp_path, "pyproject.toml", *(f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py")))
    out = run(change(COVERAGE, ("uv run pytest", "uv run pytest -n 0 tests/test_tools.py")), tmp_path)
    assert re.search(r"^tools\.py +\d+ +0 +100%", out, re.MULTILINE)


def test_the_example_with_an_mcp_server_answers(run: Run) -> None:
    assert run(MCP).splitlines() == [
        "Tokyo: population 9,733,276.",
        "Paris: population 2,138,551.",
        "Atlantis: Error executing tool get_population: there is no city called 'Atlantis'.",
    ]


async def test_a_history_is_recorded(run: Run, start_agent: StartAgent, tmp_path: Path) -> None:
    copy(tmp_path, "tests/record_history.py")
    (tmp_path / "tests" / "histories").mkdir()
    handle = await start_agent()
    await handle.result()
    run(change(RECORD, ("ID", handle.id), ("NAME", "name")), tmp_path)
    history = json.loads((tmp_path / "tests" / "histories" / "name.json").read_text())
    assert history["events"][-1]["eventType"] == "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED"


# Where there is no browser: it keeps the page itself in the place of its picture.
STAND_IN = f"""\
#!{sys.executable}
import pathlib, sys, urllib.request
[file] = [word.removeprefix("--screenshot=") for word in sys.argv if word.startswith("--screenshot=")]
pathlib.Path(file).write_bytes(urllib.request.urlopen(sys.argv[-1]).read())
"""


@pytest.mark.by_hand
def test_a_picture_is_taken_of_the_page(run: Run, folder: Path) -> None:
    copy(folder, "docs/screenshot.py", "tests/terminal.py", "tests/processes.py", "tests/standin.py")
    beginning = b"\x89PNG"
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        (folder / "chromium").write_text(STAND_IN)
        (folder / "chromium").chmod(0o755)
        beginning = b"<!doctype html>"
    run(f"PATH=$PATH:{shlex.quote(str(folder))}\n{SCREENSHOT}", folder)
    assert (folder / "docs" / "web-ui.png").read_bytes().startswith(beginning)
    for file, words in (("terminal.svg", "New York: 17.2 °C"), ("chat.svg", "  steers turn 1")):
        picture = ElementTree.parse(folder / "docs" / file).getroot()
        assert words in "".join(picture.itertext()).replace("\N{NO-BREAK SPACE}", " ")


def table(document: str, title: str) -> list[str]:
    section = document.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")]


def figures(document: str, title: str) -> dict[str, list[float]]:
    rows = [line.strip("| ").split(" | ") for line in table(document, title)[2:]]
    return {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in rows}


@pytest.mark.by_hand
def test_the_benchmark_of_many_agents_measures_and_writes_a_table_and_a_picture(run: Run, tmp_path: Path) -> None:
    run(f"{LOAD} --quick --output {shlex.quote(str(tmp_path))}")
    assert "this sample" in (tmp_path / "load.md").read_text()
    assert ElementTree.parse(tmp_path / "load.svg").getroot().tag.endswith("svg")


@pytest.mark.by_hand
def test_the_benchmark_of_a_long_conversation_measures_and_writes_tables(run: Run, tmp_path: Path) -> None:
    run(f"{LONG_CONVERSATION} --quick --output {shlex.quote(str(tmp_path / 'conversation.md'))}")
    assert "| this sample |" in (tmp_path / "conversation.md").read_text()


@pytest.mark.by_hand
def test_the_benchmark_measures_and_writes_tables_and_a_picture(run: Run, tmp_path: Path) -> None:
    # Without the two others, which have to be installed, and with one server of the two.
    run(f"{BENCHMARK} --quick --no-peers --stock-rounds 0 --output {shlex.quote(str(tmp_path))}")
    results = (tmp_path / "results.md").read_text()
    summary = figures(results, "On the tuned server")
    assert list(summary) == ["this sample", "bare workflow", "obvious version"]
    assert all(figure > 0 for row in summary.values() for figure in row)
    sample, floor, obvious = (row[0] for row in summary.values())
    assert obvious > 1.5 * max(sample, floor)  # its transcripts are in the history
    picture = ElementTree.parse(tmp_path / "results.svg").getroot()
    of_svg = {"": "http://www.w3.org/2000/svg"}
    lines = [line.attrib["points"] for line in picture.findall("polyline", of_svg)]
    assert len(lines) == 2 * 3
    for point in " ".join(lines).split():
        x, y = map(float, point.split(","))
        assert 0 < x < 960
        assert 0 < y < 400
    labels = [label.text or "" for label in picture.findall("text", of_svg)]
    assert [sum(label.startswith(name) for label in labels) for name in summary] == [2, 2, 2]


def test_the_figures_of_the_benchmark_are_those_that_it_wrote(run: Run, tmp_path: Path) -> None:
    written = {name: (ROOT / "benchmarks" / name).read_text() for name in ("results.md", "results.svg")}
    shutil.copy(ROOT / "benchmarks" / "results.json", tmp_path)
    run(f"uv run benchmarks/report.py {shlex.quote(str(tmp_path))}")
    assert {name: (tmp_path / name).read_text() for name in written} == written

    results = written["results.md"]
    assert f"Written by `{BENCHMARK}`" in results
    assert table(README, "What it costs") == table(results, "On the tuned server")
    stock = figures(results, "Time per activity on the stock server, ms")
    all_of_stock = [round(figure) for row in stock.values() for figure in row]
    factor = re.search(r"faster per activity than on a stock dev server at T = 3 \| ([\d.]+) times", results)
    assert factor is not None
    said = re.search(r"take (\d+) to (\d+) ms\s+per activity: this sample ([\d.]+) times as long at T = 3", TEXT)
    assert said is not None
    assert said.groups() == (str(min(all_of_stock)), str(max(all_of_stock)), factor[1])
