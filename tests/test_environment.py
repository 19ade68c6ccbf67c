"""The query and the environment: any text is taken, and what cannot work is named before a run starts."""

import asyncio
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from conftest import ROOT, RunMain, StartMain, StartServer, copy_sample, make_worker
from standin import StandIn, hang, text
from standin import tools as calls
from temporalio.client import Client

from app.demo import NOTICE
from workflow import AgentWorkflow
from workflow_types import AgentRequest

TOKYO = "Tokyo: 18.4 °C, partly cloudy, wind 12.1 km/h.\n"


def error(result: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a run is refused before it is started."""
    assert (result.returncode, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# ── The query ────────────────────────────────────────────────────────────────────────────────────────────


def test_any_text_is_a_query_and_arrives_as_it_is(run_main: RunMain, standin: StandIn) -> None:
    query = "; ".join(
        [
            "東京の\N{IDEOGRAPHIC SPACE}天気",
            "Weather\N{NO-BREAK SPACE}in Tokyo",
            "The weather for a \N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}?",
            "one\N{LINE SEPARATOR}two\N{PARAGRAPH SEPARATOR}three",
            "right to left \N{RIGHT-TO-LEFT MARK}עברית",
            "a\ttab and\na line",
            "private \ue000, unassigned \U000e0fff",
        ]
    )
    standin.play(text("the answer"))
    result = run_main(query, env=standin.environment)
    assert (result.returncode, result.stdout) == (0, "the answer\n")
    assert standin.calls[0].query == query


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with a byte order mark"])
def test_a_text_file_of_windows_is_a_query_of_lines(run_main: RunMain, standin: StandIn, mark: str) -> None:
    standin.play(text("the answer"))
    run_main("-", input=f"{mark}the weather\r\nin Tokyo?\r\n", env=standin.environment)
    assert standin.calls[0].query == "the weather\nin Tokyo?"


@pytest.mark.parametrize("character", ["\x01", "\x1b", "\x7f", "\x85", "\x9b", "\r"], ids=ascii)
def test_what_is_no_text_is_refused(run_main: RunMain, character: str) -> None:
    result = run_main(f"Weather{character} in Tokyo?")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == "main.py: error: the query contains control characters"


# ── Proxies, keys, addresses ─────────────────────────────────────────────────────────────────────────────

PROXIES = ["socks5://127.0.0.1:9", "socks://127.0.0.1:9", "http://127.0.0.1:9", "nonsense://127.0.0.1:9"]


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_demo_never_meets_a_proxy(run_main: RunMain, proxy: str) -> None:
    # Any one of them would be used, and is nowhere.
    env = dict.fromkeys(["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"], proxy)
    result = run_main("What is the weather in Tokyo?", env=env)
    assert (result.returncode, result.stdout) == (0, TOKYO)


@pytest.mark.parametrize("outside", ["AI_GATEWAY_BASE_URL", "OPEN_METEO_GEOCODING_URL", "OPEN_METEO_FORECAST_URL"])
def test_a_proxy_that_cannot_work_is_named_before_the_run_starts(
    run_main: RunMain, standin: StandIn, outside: str
) -> None:
    proxy = {"ALL_PROXY": "socks://user:a-password@127.0.0.1:9", "NO_PROXY": ""}
    line = error(run_main("Weather?", env={**standin.environment, outside: "", **proxy}))
    assert line.startswith("Error: ALL_PROXY names a proxy that cannot be used for ")
    assert "a-password" not in line


@pytest.mark.parametrize("key", ["“a-key-in-quotes”", "a-key\nand a line", "a-key ", "ключ-от-шлюза"], ids=ascii)
def test_a_key_that_no_header_can_hold_is_named_before_the_run_starts(
    run_main: RunMain, standin: StandIn, key: str
) -> None:
    line = error(run_main("Weather?", env={**standin.environment, "AI_GATEWAY_API_KEY": key}))
    assert line == "Error: AI_GATEWAY_API_KEY has characters that no HTTP header can hold: copy the key again"


def test_a_url_that_is_none_is_named_before_the_run_starts(run_main: RunMain, standin: StandIn) -> None:
    line = error(run_main("Weather?", env={**standin.environment, "AI_GATEWAY_BASE_URL": "gateway.example"}))
    assert line == "Error: AI_GATEWAY_BASE_URL is no http:// or https:// URL: gateway.example"


@pytest.mark.parametrize("address", ["localhost:7233/", "localhost", "http://localhost:7233", "localhost:port", " "])
def test_an_address_that_is_none_is_named_before_the_run_starts(
    run_main: RunMain, standin: StandIn, address: str
) -> None:
    line = error(run_main("Weather?", env={**standin.environment, "TEMPORAL_ADDRESS": address}))
    assert line == f"Error: TEMPORAL_ADDRESS, or the profile, has to name HOST:PORT (localhost:7233), not {address!r}"


async def test_an_answer_to_a_question_needs_no_key_and_starts_no_demo(
    client: Client, run_main: RunMain, standin: StandIn
) -> None:
    queue = "durable-agent"
    standin.play(calls(("a", "get_weather", {"city": "Tokyo"})), text("the answer"))
    async with make_worker(client, queue):
        request = AgentRequest(query="Weather?", model="m", approve=True)
        handle = await client.start_workflow(AgentWorkflow.run, request, id=uuid.uuid4().hex, task_queue=queue)
        async for event in handle.fetch_history_events(wait_new_event=True):
            if event.HasField("workflow_properties_modified_event_attributes"):
                break
        [key] = await (await handle.describe()).memo()
        call = key.partition(".")[2]
        result = await asyncio.to_thread(run_main, "--id", handle.id, "--yes", call)
        assert (result.returncode, result.stderr.splitlines()[0]) == (0, 'Approved: get_weather(city="Tokyo")')
        assert NOTICE not in result.stderr
        assert (await handle.result()).text == "the answer"


# ── The page of a run ────────────────────────────────────────────────────────────────────────────────────


def test_no_page_is_named_of_a_server_that_is_not_ours(
    folder: Path, start_main: StartMain, start_server: StartServer, run_main: RunMain
) -> None:
    start_server(port=7233)
    process = start_main("Weather in Tokyo?", "--offline", folder=folder)
    out, err = process.communicate(timeout=60)
    assert out == TOKYO
    for shown in (err, run_main("Weather in Tokyo?").stderr):
        assert "Run agent-" in shown
        assert "http" not in shown


# ── Bugs ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bug", ["1 / 0", 'raise KeyError("encoding")'])
@pytest.mark.parametrize("place", ["_read_call", "_show_pending"])
def test_a_bug_of_the_display_is_called_one_and_loses_no_answer(
    run_main: RunMain, standin: StandIn, tmp_path: Path, bug: str, place: str
) -> None:
    copy_sample(tmp_path)
    source = (tmp_path / "app" / "progress.py").read_text()
    head, definition, body = source.partition(f"    async def {place}(")
    signature, end, rest = body.partition(":\n")
    assert rest
    (tmp_path / "app" / "progress.py").write_text(f"{head}{definition}{signature}{end}        {bug}\n{rest}")
    result = run_main("Weather in Tokyo?", env=standin.environment, script=tmp_path / "main.py")
    assert (result.returncode, result.stdout) == (0, TOKYO)
    if place == "_read_call":
        assert "(a bug; --debug shows where)" in result.stderr
    assert "encrypted" not in result.stderr
    assert "worker stopped" not in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("arguments", "env"), [(["--debug"], {}), ([], {"DURABLE_DEBUG": "1"})])
def test_debugging_shows_where_an_error_came_from(run_main: RunMain, arguments: list[str], env: dict[str, str]) -> None:
    result = run_main("--id", "nobody-has-this-id", *arguments, env=env)
    assert result.returncode == 1
    assert "Traceback (most recent call last):" in result.stderr
    assert "in find" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: there is no run called 'nobody-has-this-id'")


HELD_UP = """\
from app.command_line import load_when_used; load_when_used()
import asyncio, gc, os, sys
from temporalio.client import Client
from options.gateway import GatewayModel
from main import make_worker
from plugin import DurableAgents
from workflow import AgentWorkflow
from workflow_types import AgentRequest

async def begin(address):
    client = await Client.connect(address, plugins=[DurableAgents(GatewayModel)])
    async with make_worker(client, "held-up"):
        request = AgentRequest(query="Weather?", model="m")
        handle = await client.start_workflow(AgentWorkflow.run, request, id=sys.argv[2], task_queue="held-up")
        while not (await handle.describe()).raw_description.pending_activities:
            pass

asyncio.run(begin(sys.argv[1]))
gc.collect()
os._exit(0)
"""


def test_a_run_that_ends_with_its_worker_leaves_no_complaint(environment: dict[str, str], standin: StandIn) -> None:
    standin.play(hang())
    result = subprocess.run(
        [sys.executable, "-c", HELD_UP, environment["TEMPORAL_ADDRESS"], uuid.uuid4().hex],
        cwd=ROOT,
        env={**environment, **standin.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
