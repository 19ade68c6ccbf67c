"""The rules for failures: what is tried again, what the model is told, what stays secret, which proxy is used.

The last part is the plugin, which brings the rules to clients and workers.
"""

import asyncio
import base64
import dataclasses
import os
import re
import sys
import urllib.request
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import agents
import pydantic
import pytest
import toolbox
import vercel_ai_sdk as ai
from conftest import ROOT, StartAgent, make_worker
from converter import Encryption, Folder
from spans import exported_spans
from standin import Call, StandIn, hang, paced, text, text_parts
from standin import tools as calls
from starlette.responses import JSONResponse, Response
from temporalio.api.failure.v1 import ApplicationFailureInfo
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowHistory
from temporalio.contrib.opentelemetry import OpenTelemetryPlugin
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, ExternalStorage
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Plugin, Replayer, UnsandboxedWorkflowRunner, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

import tools
from app import devserver
from bridge.failures import is_final
from durable import temporal_tool
from open_meteo import OpenMeteoError
from options.gateway import GatewayModel, check_environment
from options.http import proxy_for
from plugin import DurableAgents

type Handle = WorkflowHandle[Any, Any]

GO_WRONG = "ToolError: go_wrong failed: "


def address_of(client: Client) -> str:
    return client.service_client.config.target_host


async def start(client: Client, queue: str, workflow: type, *arguments: object) -> Handle:
    handle: Handle = await client.start_workflow(
        workflow.run,  # type: ignore[attr-defined]  # every workflow has one
        args=list(arguments),
        id=uuid.uuid4().hex,
        task_queue=queue,
    )
    return handle


async def result_of(handle: Handle) -> Any:
    async with asyncio.timeout(30):
        return await handle.result()


async def failure_of(handle: Handle) -> BaseException | None:
    """The failure of a run, below those that only pass it on."""
    with pytest.raises(WorkflowFailureError) as raised:
        await result_of(handle)
    error: BaseException | None = raised.value
    while error and error.__cause__:
        error = error.__cause__
    return error


def all_text(history: WorkflowHistory) -> str:
    """A history as JSON, with the data of its payloads in plain text behind it."""
    plain = history.to_json()
    payloads = re.findall(r'"data":\s*"([^"]+)"', plain)
    return "\n".join([plain, *(base64.b64decode(data).decode(errors="replace") for data in payloads)])


# ── Errors of tools ──────────────────────────────────────────────────────────────────────────────────────

OWN_ERRORS: dict[str, BaseException] = {
    "StopIteration": StopIteration("of its own"),
    "StopAsyncIteration": StopAsyncIteration(),
    "CancelledError": asyncio.CancelledError(),
    "GeneratorExit": GeneratorExit("of its own"),
    "SystemExit": SystemExit(3),
    "TypeError": TypeError("'NoneType' object is not subscriptable"),
    "AttributeError": AttributeError("'str' object has no attribute 'city'"),
    "ZeroDivisionError": BaseExceptionGroup("of a task group", [ZeroDivisionError("division by zero")]),
}


@pytest.mark.parametrize("kind", OWN_ERRORS)
async def test_an_error_in_the_code_of_a_tool_is_told_to_the_model_after_one_call(
    client: Client, queue: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(toolbox.ERRORS, name := uuid.uuid4().hex, OWN_ERRORS[kind])
    # The second tool call needs a worker that survived the first one.
    standin.play(calls(("1", "go_wrong", {"kind": name})), calls(("2", "count_legs", {"legs": []})), text("done"))
    handle = await start(client, queue, agents.AnswerWorkflow, "go")
    assert await result_of(handle) == "done"
    assert toolbox.ATTEMPTS.count(name) == 1
    [wrong, counted] = [result["output"] for result in standin.calls[2].tool_results]
    assert wrong["type"] == "error-text"
    assert wrong["value"].startswith(GO_WRONG + kind)
    assert counted["value"]["legs"] == 0


WORKER = """
from app.command_line import load_when_used; load_when_used()
import asyncio, os, sys
import agents
from temporalio.client import Client
from temporalio.worker import Worker
from options.gateway import GatewayModel
from plugin import DurableAgents

async def main(address, queue):
    client = await Client.connect(address, plugins=[DurableAgents(GatewayModel)])
    running = asyncio.create_task(Worker(client, task_queue=queue, workflows=[agents.TranscriptWorkflow]).run())
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main(*sys.argv[1:]))
os._exit(0)
"""


@pytest.mark.parametrize("in_flight", ["model", "tool"])
async def test_a_call_that_ends_with_the_event_loop_of_its_worker_is_made_again(
    client: Client, standin: StandIn, in_flight: str
) -> None:
    """`asyncio.run()` cancels the activities as it ends. Neither the server nor the tool asked for that."""
    if in_flight == "model":
        standin.play(hang())
    else:
        standin.geocoding = hang()
    queue = uuid.uuid4().hex
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, address_of(client), queue),
        env={**os.environ, "PYTHONPATH": folders},
        stdin=asyncio.subprocess.PIPE,
    )
    try:
        handle = await start(client, queue, agents.TranscriptWorkflow, "Population of Paris")
        await asyncio.to_thread(standin.wait_for, calls=1, lookups=in_flight == "tool")
        with suppress(TimeoutError):  # Temporal's part of it may hang
            async with asyncio.timeout(10):
                await process.communicate(b"\n")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    standin.geocoding = None
    async with make_worker(client, queue):
        assert (await result_of(handle))[-1].text == "Paris: population 2,138,551."


async def test_a_tool_that_must_not_run_twice_is_not_called_again_after_its_worker_was_stopped(
    client: Client, standin: StandIn
) -> None:
    queue = uuid.uuid4().hex
    standin.play(calls(("1", "dig", {"place": queue})), text("I see"))
    async with make_worker(client, queue):
        handle = await start(client, queue, agents.AnswerWorkflow, "go")
        async with asyncio.timeout(30):
            while [queue] != toolbox.DUG:
                await handle.describe()
    async with make_worker(client, queue):
        assert await result_of(handle) == "I see"
    assert [queue] == toolbox.DUG
    [result] = standin.calls[1].tool_results
    told = "ToolError: dig failed: its worker was stopped, and nobody knows whether it took effect"
    assert result["output"]["value"] == told


def test_a_plain_function_is_refused_as_a_tool_and_not_called() -> None:
    called = []

    def plain() -> str:
        called.append("plain")
        return "a result"

    tool: ai.Tool[..., Any] = ai.tool(plain)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(TypeError, match=r"plain is not an async function.*async def"):
        temporal_tool(tool)
    assert called == []


TRIED_AGAIN = ["408", "409", "425", "429", "500", "502", "503", "504"]
FINAL = ["400", "404"]


async def test_an_http_status_decides_the_same_way_with_and_without_temporal(
    client: Client, queue: str, standin: StandIn
) -> None:
    def geocoding(call: Call) -> Response:
        city = standin.lookups[-1]
        if city in FINAL or standin.lookups.count(city) == 1:
            return JSONResponse({"reason": "not now"}, int(city))
        return JSONResponse({"results": [{"name": city, "latitude": 1, "longitude": 2, "population": 3}]})

    standin.geocoding = geocoding
    # Each city is a status. All are looked up at the same time, so that the second of the first retry passes once.
    cities = [*TRIED_AGAIN, *FINAL]
    standin.play(calls(*((city, "get_population", {"city": city}) for city in cities)), text("done"))
    await result_of(await start(client, queue, agents.TranscriptWorkflow, "go"))
    assert Counter(standin.lookups) == {city: 2 if city in TRIED_AGAIN else 1 for city in cities}
    outputs = {result["toolCallId"]: result["output"] for result in standin.calls[1].tool_results}
    assert [outputs[city]["value"]["population"] for city in TRIED_AGAIN] == [3] * len(TRIED_AGAIN)
    for city in FINAL:
        message = f"asking about '{city}' failed with HTTP status {city}: not now"
        assert outputs[city] == {"type": "error-text", "value": f"ToolError: get_population failed: {message}"}

    standin.lookups.clear()
    for city in cities:
        with pytest.raises(OpenMeteoError) as raised:
            await tools.get_population(city=city)
        assert raised.value.response is not None
        assert raised.value.response.status_code == int(city)
        assert is_final(raised.value) == (city in FINAL)


# ── Secrets ──────────────────────────────────────────────────────────────────────────────────────────────

WHOLE = "postgres://user:p4ssw0rd-long@db.example/shop"
ENCODED = "postgres://user:p%40ss%2Fw0rd-long@db.example/shop"
BROKERS = "amqp://shop:first-passw0rd@a.example,amqp://shop:second-passw0rd@b.example"
TOKEN = "ghp_0123456789abcdef"

# The environment, the text of the error, and the parts of it that nobody may read.
SECRETS: dict[str, tuple[dict[str, str], str, list[str]]] = {
    "a password": ({"SHOP_PASSWORD": "correct horse"}, "login with correct horse refused", ["correct horse"]),
    "the password of a URL": ({"DATABASE_URL": WHOLE}, "bad password: p4ssw0rd-long", ["p4ssw0rd-long"]),
    "a URL": ({"DATABASE_URL": WHOLE}, f"cannot connect to {WHOLE}", ["p4ssw0rd-long"]),
    "a URL that the environment does not have": ({}, f"cannot connect to '{WHOLE}'", ["p4ssw0rd-long"]),
    "an encoded password": (
        {"DATABASE_URL": ENCODED},
        f"cannot connect to {ENCODED}: bad password p@ss/w0rd-long, or p%40ss%2Fw0rd-long",
        ["p@ss/w0rd", "p%40ss%2Fw0rd"],
    ),
    "a token": ({"REMOTE": f"https://{TOKEN}@git.example"}, f"https://{TOKEN}@git.example refuses {TOKEN}", [TOKEN]),
    "a token without a password": ({"REMOTE": f"https://{TOKEN}:@git.example"}, f"{TOKEN} is refused", [TOKEN]),
    "two URLs in one variable": (
        {"BROKERS": BROKERS},
        "bad passwords: first-passw0rd and second-passw0rd",
        ["first-passw0rd", "second-passw0rd"],
    ),
    "a token that begins with another": (
        {"A_TOKEN": "begin-0123", "B_TOKEN": f"begin-0123-{TOKEN}"},
        f"begin-0123-{TOKEN} is refused",
        [TOKEN],
    ),
}


async def run_with(client: Client, queue: str, standin: StandIn, *errors: BaseException) -> tuple[WorkflowHistory, str]:
    """The history of a run whose tool raises these errors, and the next request to the model."""
    kinds = [uuid.uuid4().hex for _ in errors]
    toolbox.ERRORS.update(zip(kinds, errors, strict=True))
    standin.play(calls(*((kind, "go_wrong", {"kind": kind}) for kind in kinds)), text("done"))
    handle = await start(client, queue, agents.AnswerWorkflow, "go")
    assert await result_of(handle) == "done"
    assert all(result["output"]["value"].startswith(GO_WRONG) for result in standin.calls[1].tool_results)
    return await handle.fetch_history(), str(standin.calls[1].body)


def failures_in(history: WorkflowHistory) -> list[ApplicationFailureInfo]:
    return [
        event.activity_task_failed_event_attributes.failure.application_failure_info
        for event in history.events
        if event.HasField("activity_task_failed_event_attributes")
    ]


@pytest.mark.parametrize("secret", SECRETS)
async def test_no_secret_in_an_error_is_kept_in_the_history_or_told_to_the_model(
    client: Client, queue: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    environment, said, hidden = SECRETS[secret]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    own = ApplicationError(said, said, {"texts": [said, (said,)]}, type="Refused", non_retryable=True)
    history, request = await run_with(client, queue, standin, own, ValueError(said))
    assert [part for part in hidden if part in all_text(history)] == []
    assert [part for part in hidden if part in request] == []


class Detail(pydantic.BaseModel):
    text: str


DETAILS: dict[str, object] = {"a key": {f"key {WHOLE}": 1}, "a model": [Detail(text=WHOLE)], "a set": {WHOLE}}


@pytest.mark.parametrize("detail", DETAILS)
async def test_no_secret_in_a_detail_of_an_error_is_kept_in_the_history(
    client: Client, queue: str, standin: StandIn, detail: str
) -> None:
    error = ApplicationError("refused", DETAILS[detail], type="Refused", non_retryable=True)
    history, _ = await run_with(client, queue, standin, error)
    assert [(failure.type, failure.non_retryable) for failure in failures_in(history)] == [("Refused", True)]
    assert "p4ssw0rd-long" not in all_text(history)


async def test_an_error_keeps_what_it_says_of_itself(client: Client, queue: str, standin: StandIn) -> None:
    before = len(toolbox.ATTEMPTS)
    final = ApplicationError("no", "a detail", 7, type="Refused", non_retryable=True)
    benign = ApplicationError("not yet", type="Busy", category=ApplicationErrorCategory.BENIGN)
    history, _ = await run_with(client, queue, standin, final, benign)
    found = {failure.type: failure for failure in failures_in(history)}
    assert found["Refused"].non_retryable
    assert [payload.data for payload in found["Refused"].details.payloads] == [b'"a detail"', b"7"]
    assert not found["Busy"].non_retryable
    assert int(found["Busy"].category) == ApplicationErrorCategory.BENIGN
    assert len(toolbox.ATTEMPTS) - before == 3  # only the second error was tried again


# ── Money ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_without_an_end_is_paid_for_three_times_at_most(
    client: Client, queue: str, standin: StandIn
) -> None:
    standin.play(*[paced(0.2, *text_parts(*["word "] * 100))] * 5)
    failure = await failure_of(await start(client, queue, agents.ShortOfTimeWorkflow, "go"))
    assert isinstance(failure, ApplicationError)
    assert "start_to_close_timeout is 0:00:02" in failure.message
    assert 1 <= len(standin.calls) <= 3


async def test_by_default_an_answer_may_take_hours(start_agent: StartAgent) -> None:
    handle = await start_agent()
    await result_of(handle)
    timeouts = [
        event.activity_task_scheduled_event_attributes.start_to_close_timeout.ToTimedelta()
        for event in (await handle.fetch_history()).events
        if event.activity_task_scheduled_event_attributes.activity_type.name == "llm_stream_activity"
    ]
    assert len(timeouts) == 2
    assert min(timeouts) > timedelta(hours=1)


# ── Retry-After ──────────────────────────────────────────────────────────────────────────────────────────

LONG = 5 * 60


def in_ten_seconds() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)


class Refusal(NamedTuple):
    """An HTTP status with `Retry-After`, and the seconds to wait at least and at most."""

    code: int
    value: str | Callable[[], str]
    least: float
    most: float


@pytest.mark.parametrize("service", ["model", "tool"])
@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(429, "20", 20, 25),
        Refusal(503, "1.5", 1.5, 4.5),
        Refusal(503, in_ten_seconds, 8, 13),
        Refusal(429, "86400", LONG, LONG * 1.25),
        Refusal(429, "nonsense", 0, 1.1),
        Refusal(429, "-5", 0, 1.1),
        Refusal(429, "nan", 0, 1.1),
        Refusal(503, "Mon, 01 Jan 2024 00:00:00 GMT", 0, 1.1),
    ],
    ids=lambda refusal: "a date" if callable(refusal.value) else refusal.value,
)
async def test_the_next_attempt_comes_when_the_service_says(
    start_agent: StartAgent, standin: StandIn, service: str, refusal: Refusal
) -> None:
    code, value, least, most = refusal

    def refuse(call: Call) -> Response:
        return JSONResponse({"error": {}}, code, {"Retry-After": value if isinstance(value, str) else value()})

    if service == "model":
        standin.play(refuse, hang())
    else:
        standin.play(calls(("1", "get_population", {"city": "Tokyo"})))
        standin.geocoding = refuse
    handle = await start_agent()
    async with asyncio.timeout(30):
        while True:
            pending = (await handle.describe()).raw_description.pending_activities
            if pending and pending[0].HasField("last_failure"):
                break
    since = pending[0].last_attempt_complete_time.ToDatetime()
    waits = (pending[0].next_attempt_schedule_time.ToDatetime() - since).total_seconds()
    assert waits < 0 or least <= waits <= most  # below 0 where the next attempt is under way already
    assert waits > 0 or least < 2
    await handle.terminate()


# ── Proxies ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the test itself names proxies."""
    for name in urllib.request.getproxies_environment():
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@asynccontextmanager
async def socks_proxy(url: str) -> AsyncIterator[tuple[int, list[str]]]:
    """A SOCKS5 proxy that connects every request to the host of one URL. Yields its port and the requested hosts."""
    asked: list[str] = []
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        onward: asyncio.StreamWriter | None = None
        try:
            [_, methods] = await reader.readexactly(2)
            await reader.readexactly(methods)
            writer.write(b"\x05\x00")  # no password
            [_, command, _, kind, length] = await reader.readexactly(5)
            assert (command, kind) == (1, 3)  # a connection to a host by name
            host = (await reader.readexactly(length)).decode()
            asked.append(f"{host}:{int.from_bytes(await reader.readexactly(2))}")
            service, onward = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
            writer.write(b"\x05\x00\x00\x01" + bytes(6))
            await asyncio.gather(pass_on(reader, onward), pass_on(service, writer))
        finally:
            writer.close()
            if onward:
                onward.close()

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
            target.write_eof()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked
        for connection in connections:  # the client keeps them for its next requests
            connection.transport.abort()


@pytest.mark.parametrize("scheme", ["socks5", "socks"])
async def test_services_on_loopback_never_meet_a_proxy(
    start_agent: StartAgent, standin: StandIn, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    async with socks_proxy(standin.url) as (port, asked):
        for name in ("ALL_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"{scheme}://127.0.0.1:{port}")
        check_environment()
        answer = await result_of(await start_agent("Weather in Tokyo"))
    assert answer.text == "Tokyo: 18.4 °C, partly cloudy, wind 12.1 km/h."
    assert asked == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.10", "[::1]", "model.localhost"])
def test_every_name_of_loopback_is_known(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert proxy_for(f"https://{host}:8080/v1") is None
    assert proxy_for("https://gateway.example/v1") == "socks5://127.0.0.1:9"


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_the_outside_world_is_reached_through_socks(
    start_agent: StartAgent, standin: StandIn, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    for name, value in standin.environment.items():
        host = "gateway.example" if name.startswith("AI_") else "meteo.example"
        monkeypatch.setenv(name, value.replace(standin.url, f"http://{host}"))
    async with socks_proxy(standin.url) as (port, asked):
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:{port}")
        answer = await result_of(await start_agent("Weather in Tokyo"))
    assert answer.text == "Tokyo: 18.4 °C, partly cloudy, wind 12.1 km/h."
    assert Counter(asked) == {"gateway.example:80": 1, "meteo.example:80": 1}  # kept for the next request


@pytest.mark.parametrize(
    "proxy", ["socks://me:hunter2-long@host:1", "socks4://me:hunter2-long@host:1", "http://me:hunter2-long@host:port"]
)
def test_a_proxy_that_cannot_be_used_is_refused_in_one_line_without_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    uses: list[Callable[[], object]] = [lambda: proxy_for("https://ai-gateway.vercel.sh/v3/ai"), check_environment]
    for use in uses:
        with pytest.raises(ValueError, match="ALL_PROXY") as raised:
            use()
        assert "\n" not in str(raised.value)
        assert "hunter2" not in str(raised.value)


# ── The plugin ───────────────────────────────────────────────────────────────────────────────────────────


RULED = [agents.TranscriptWorkflow, agents.FailingWorkflow]


async def check_rules(client: Client, worker: Worker, replay_with: Sequence[Plugin] = (DurableAgents(),)) -> None:
    """Have an answer with tool calls, and a loop that fails in groups: it ends the run. Both replay."""
    async with worker:
        answered = await start(client, worker.task_queue, agents.TranscriptWorkflow, "Population of Paris")
        failed = await start(client, worker.task_queue, agents.FailingWorkflow)
        assert (await result_of(answered))[-1].text == "Paris: population 2,138,551."
        failure = await failure_of(failed)
    assert isinstance(failure, ApplicationError)
    assert (failure.type, failure.message) == ("Weighty", "the weighty one")
    for handle in (answered, failed):
        await Replayer(workflows=RULED, plugins=replay_with).replay_workflow(await handle.fetch_history())


async def test_a_users_codec_failure_converter_and_storage_stay(
    client: Client, standin: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(toolbox.ERRORS, "readable", RuntimeError("said in clear"))
    own = dataclasses.replace(
        DataConverter.default,
        payload_codec=Encryption(bytes(32)),
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
        external_storage=ExternalStorage(drivers=[Folder(tmp_path)]),
    )
    plugins = [DurableAgents(GatewayModel)]
    own_client = await Client.connect(address_of(client), data_converter=own, plugins=plugins)
    used = own_client.data_converter
    assert used.payload_converter_class is PydanticPayloadConverter
    for kept in ("payload_codec", "failure_converter_class", "external_storage"):
        assert getattr(used, kept) is getattr(own, kept)

    standin.play(
        calls(("1", "big_result", {"size": 400_000}), ("2", "go_wrong", {"kind": "readable"})), text("in clear, too")
    )
    async with Worker(own_client, task_queue=(queue := uuid.uuid4().hex), workflows=[agents.AnswerWorkflow]):
        handle = await start(own_client, queue, agents.AnswerWorkflow, "go")
        assert await result_of(handle) == "in clear, too"
    history = all_text(await handle.fetch_history())
    assert "in clear" not in history
    assert "xxxx" not in history
    assert any(path.stat().st_size > 400_000 for path in tmp_path.iterdir())  # noqa: ASYNC240  # nobody waits


async def test_a_given_runner_keeps_its_own_settings(client: Client, standin: StandIn) -> None:
    own = SandboxRestrictions.default.with_passthrough_modules("users_own_module")
    for runner in (SandboxedWorkflowRunner(restrictions=own), UnsandboxedWorkflowRunner()):
        worker = Worker(client, task_queue=uuid.uuid4().hex, workflows=RULED, workflow_runner=runner)
        used = worker.config(active_config=True)["workflow_runner"]
        if isinstance(runner, SandboxedWorkflowRunner):
            assert isinstance(used, SandboxedWorkflowRunner)
            assert used.restrictions.passthrough_modules == own.passthrough_modules | {"vercel_ai_sdk"}
        else:
            assert used is runner
        await check_rules(client, worker)


@pytest.mark.filterwarnings("ignore:The same plugin type")
async def test_a_plugin_on_client_and_worker_works_once(client: Client, standin: StandIn) -> None:
    one = DurableAgents(GatewayModel)
    for on_client, on_worker in ((one, one), (DurableAgents(), DurableAgents(GatewayModel))):
        other = await Client.connect(address_of(client), plugins=[on_client])
        worker = Worker(other, task_queue=uuid.uuid4().hex, workflows=RULED, plugins=[on_worker])
        used = worker.config(active_config=True)
        assert len(used["activities"]) == 2
        assert len(used["interceptors"]) == (1 if on_client is on_worker else 2)
        await check_rules(other, worker)


async def test_the_plugin_of_opentelemetry_may_stand_before_or_after(client: Client, standin: StandIn) -> None:
    plugins = [DurableAgents(GatewayModel), OpenTelemetryPlugin(add_temporal_spans=True)]
    for order in (plugins, plugins[::-1]):
        with exported_spans() as memory:
            other = await Client.connect(address_of(client), plugins=order)
            await check_rules(other, Worker(other, task_queue=uuid.uuid4().hex, workflows=RULED), replay_with=order)
        spans = Counter(span.name for span in memory.get_finished_spans())
        ran = {name.removeprefix("RunActivity:"): n for name, n in spans.items() if name.startswith("RunActivity:")}
        assert ran == {"llm_stream_activity": 2, "tool_call_activity": 1}
        assert spans["RunWorkflow:FailingWorkflow"] == 1


@pytest.mark.parametrize("kind", ["from a client", "local"])
async def test_an_environment_of_temporals_testing_takes_the_plugin(
    client: Client, standin: StandIn, kind: str
) -> None:
    plugins = [DurableAgents(GatewayModel)]
    if kind == "local":
        binary = devserver.find_temporal()
        environment = await WorkflowEnvironment.start_local(plugins=plugins, dev_server_existing_path=binary)
    else:
        environment = WorkflowEnvironment.from_client(await Client.connect(address_of(client), plugins=plugins))
    async with environment as env:
        await check_rules(env.client, Worker(env.client, task_queue=uuid.uuid4().hex, workflows=RULED))
