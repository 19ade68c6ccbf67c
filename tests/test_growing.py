"""Out of one machine: TLS, API keys and profiles, encryption, external storage, versions, each on the real thing.

That workers in processes of their own share the work is in test_crashes.py.
"""

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import agents
import grpc
import pytest
from conftest import ROOT, Forgetful, RunMain, StartMain, StartServer, copy_sample, make_worker
from converter import Encryption, Folder
from processes import line_with
from standin import Reply, StandIn, hang, held, status, text, text_parts
from standin import tools as calls
from temporalio.api.workflowservice.v1 import SetWorkerDeploymentCurrentVersionRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, ExternalStorage
from temporalio.service import RPCError
from temporalio.worker import Replayer, WorkerDeploymentConfig
from tls_proxy import Certificates, Proxy

from app import command_line, demo, devserver
from app.demo import Part
from bridge.transcript import REQUEST_QUERY, TRANSCRIPT_QUERY, Transcript
from bridge.watching import watch
from options.approvals import APPROVAL, QUESTION_MEMO, Approval, open_questions
from options.gateway import GatewayModel
from plugin import DurableAgents
from workflow import AgentWorkflow
from workflow_types import AgentRequest

KEY = "the-api-key-of-the-tests"
TOKYO = "Tokyo: 18.4 °C, partly cloudy, wind 12.1 km/h.\n"
NO_KEY = {"AI_GATEWAY_API_KEY": ""}
BOUND = 30  # seconds, for what takes one or two

DESCRIBE = ["workflow", "describe", "--workflow-id"]
MAKE_CURRENT = ["worker", "deployment", "set-current-version", "--deployment-name", "durable-agent", "--yes"]

type StartProxy = Callable[..., Proxy]


def temporal_command(env: dict[str, str], *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [str(devserver.find_temporal()), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=BOUND, check=False)


def done_in_time(attempt: Callable[[], subprocess.CompletedProcess[str]]) -> None:
    """Run a command until it succeeds: what it needs may be there only a moment later."""
    since = time.monotonic()
    while (result := attempt()).returncode != 0:
        assert time.monotonic() - since < BOUND, result.stderr


# ── TLS, API keys, profiles ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def start_proxy(environment: dict[str, str], certificates: Certificates) -> Iterator[StartProxy]:
    """Start a proxy with TLS and an API key before the tests' server, or before another one."""
    with ExitStack() as stack:

        def start(host: str = "127.0.0.1", target: str | None = None, mutual: bool = False) -> Proxy:
            certificate, key = (file.read_bytes() for file in certificates.issue(host))
            authority = certificates.authority.read_bytes()
            credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=mutual)
            proxy = Proxy(target or environment["TEMPORAL_ADDRESS"], KEY)
            return stack.enter_context(proxy.serving(credentials))

        yield start


@pytest.fixture
def secured(certificates: Certificates) -> dict[str, str]:
    """What `main.py` needs for such a proxy, but for its address."""
    return {**NO_KEY, "TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(certificates.authority), "TEMPORAL_API_KEY": KEY}


def test_it_answers_through_tls_with_an_api_key(
    run_main: RunMain, start_proxy: StartProxy, secured: dict[str, str]
) -> None:
    proxy = start_proxy()
    result = run_main("Weather in Tokyo?", env={**secured, "TEMPORAL_ADDRESS": proxy.address})
    assert (result.returncode, result.stdout) == (0, TOKYO)
    # The worker, the start of the run, what follows it: all of it went through.
    assert {"PollActivityTaskQueue", "StartWorkflowExecution", "GetWorkflowExecutionHistory"} <= set(proxy.wire)
    assert "http://localhost" not in result.stderr  # where there is TLS, the Web UI may be anywhere
    assert KEY not in result.stderr


BREAKS_OFF = (
    "it breaks the connection off; it may want TLS (TEMPORAL_TLS=true) or a client certificate "
    "(TEMPORAL_TLS_CLIENT_CERT_PATH, TEMPORAL_TLS_CLIENT_KEY_PATH)"
)

WRONG: dict[str, tuple[dict[str, str], str]] = {
    "key": ({"TEMPORAL_API_KEY": "wrong"}, "there is no such API key; set TEMPORAL_API_KEY to a valid key"),
    "no TLS": ({"TEMPORAL_TLS": "false"}, BREAKS_OFF),
    "no client certificate": ({}, BREAKS_OFF),
    "host": (
        {"TEMPORAL_TLS_SERVER_NAME": "elsewhere.test"},
        "its certificate is for another host; set TEMPORAL_TLS_SERVER_NAME",
    ),
    "authority": (
        {"TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(ROOT / "pyproject.toml")},
        "its certificate is of an unknown authority; set TEMPORAL_TLS_SERVER_CA_CERT_PATH",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_secured_connection_is_told_in_one_line(
    run_main: RunMain, start_proxy: StartProxy, secured: dict[str, str], what: str
) -> None:
    wrong, line = WRONG[what]
    address = start_proxy(mutual=what == "no client certificate").address
    assert_refused(run_main, {**secured, "TEMPORAL_ADDRESS": address, **wrong}, line)


def test_tls_to_a_server_that_has_none_is_told_in_one_line(
    run_main: RunMain, secured: dict[str, str], environment: dict[str, str]
) -> None:
    env = {**secured, "TEMPORAL_ADDRESS": environment["TEMPORAL_ADDRESS"]}
    assert_refused(run_main, env, "it does not speak TLS; set TEMPORAL_TLS=false")


def test_a_key_without_an_address_is_not_taken_to_the_dev_server(
    run_main: RunMain, secured: dict[str, str], environment: dict[str, str]
) -> None:
    del environment["TEMPORAL_ADDRESS"]
    result = run_main("Weather?", env=secured)
    assert (result.returncode, result.stdout) == (1, "")
    line = "Error: an API key or TLS is configured for Temporal, but no address: set TEMPORAL_ADDRESS"
    assert result.stderr.splitlines() == [demo.NOTICE, line]


def assert_refused(run_main: RunMain, env: dict[str, str], line: str) -> None:
    since = time.monotonic()
    result = run_main("Weather in Tokyo?", env=env)
    assert time.monotonic() - since < BOUND
    assert (result.returncode, result.stdout) == (1, "")
    expected = [demo.NOTICE, f"Error: cannot use the Temporal server at {env['TEMPORAL_ADDRESS']}: {line}"]
    assert result.stderr.splitlines() == expected


PROFILE = """\
[profile.production]
address = "temporal.example.com:7233"
namespace = "agents"
api_key = "…"

[profile.production.tls]
server_ca_cert_path = "authority.pem"
client_cert_path = "worker.pem"
client_key_path = "worker.key"
server_name = "temporal.example.com"
"""


def test_a_profile_holds_it_all_for_the_sample_and_for_the_command_of_temporal(
    run_main: RunMain,
    start_server: StartServer,
    start_proxy: StartProxy,
    certificates: Certificates,
    environment: dict[str, str],
) -> None:
    _, target = start_server("--namespace", "agents")
    certificates.issue("worker")
    proxy = start_proxy("temporal.example.com", target, mutual=True)
    folder = certificates.folder
    profile = PROFILE.replace("temporal.example.com:7233", proxy.address).replace("…", KEY)
    (folder / "temporal.toml").write_text(profile)
    del environment["TEMPORAL_ADDRESS"]  # or it wins, even when it is empty
    environment |= {"TEMPORAL_CONFIG_FILE": "temporal.toml", "TEMPORAL_PROFILE": "production"}

    done_in_time(lambda: temporal_command(environment, "operator", "namespace", "describe", cwd=folder))
    result = run_main("Weather in Tokyo?", "--id", "mine", cwd=folder)
    assert (result.returncode, result.stdout) == (0, TOKYO), result.stderr
    described = json.loads(temporal_command(environment, *DESCRIBE, "mine", "--output", "json", cwd=folder).stdout)
    assert described["workflowExecutionInfo"]["status"] == "WORKFLOW_EXECUTION_STATUS_COMPLETED"


def test_a_broken_profile_is_told_in_one_line_that_shows_nothing_of_it(run_main: RunMain, tmp_path: Path) -> None:
    (tmp_path / "temporal.toml").write_text('[profile.default]\napi_key = "the"secret"\n')
    result = run_main("Weather?", env={"TEMPORAL_CONFIG_FILE": str(tmp_path / "temporal.toml")})
    assert (result.returncode, result.stdout) == (1, "")
    *_, line = result.stderr.splitlines()
    assert re.fullmatch(r"Error: the Temporal configuration cannot be read: .* at line 2, column 16: .*", line)
    assert "secret" not in result.stderr
    assert "Traceback" not in result.stderr


# ── Encryption ───────────────────────────────────────────────────────────────────────────────────────────

PLAIN = DataConverter()
ENCRYPTED = DataConverter(
    payload_codec=Encryption(os.urandom(32)),
    failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
)

# What a run is about: the query, the model, tools with their arguments, results and failures, why a person did not
# allow a call, what the model thinks and writes.
SECRETS = [
    *("Where is it foggy?", "test/model", "get_population", "Paris", "2138551", "get_weather", "Tokyo", "Atlantis"),
    *("there is no city called", "that is nobody's business", "a thought", "half an answer", "the rest of it"),
]

# The calls that carry it. (What activities get comes with the answer of RespondWorkflowTaskCompleted, most often.)
CARRIERS = {
    *("StartWorkflowExecution", "PollWorkflowTaskQueue", "RespondWorkflowTaskCompleted", "DescribeWorkflowExecution"),
    *("RecordActivityTaskHeartbeat", "RespondActivityTaskCompleted", "RespondActivityTaskFailed"),
    *("QueryWorkflow", "RespondQueryTaskCompleted", "UpdateWorkflowExecution", "GetWorkflowExecutionHistory"),
}

# What can still be read, beside ids, task queues and the names of workers.
READABLE = [
    *("AgentWorkflow", "llm_stream_activity", "tool_call_activity", "ValueError"),
    *(REQUEST_QUERY, TRANSCRIPT_QUERY, APPROVAL, QUESTION_MEMO),
]


def in_two_parts(first: list[Part], release: threading.Event, rest: list[Part]) -> Reply:
    async def generate() -> AsyncIterator[Part]:
        for part in first:
            yield part
        await asyncio.to_thread(release.wait, BOUND)
        for part in rest:
            yield part

    return lambda call: demo.stream(generate())


@pytest.mark.parametrize("data_converter", [PLAIN, ENCRYPTED], ids=["plain", "encrypted"])
async def test_nothing_that_an_encrypted_run_is_about_can_be_read_on_the_wire_or_in_its_history(
    environment: dict[str, str], standin: StandIn, monkeypatch: pytest.MonkeyPatch, data_converter: DataConverter
) -> None:
    monkeypatch.setattr(
        "bridge.transcript._cached", Forgetful()
    )  # so that model activities fetch the transcript by query
    release = threading.Event()
    thought: list[Part] = [
        {"type": "reasoning-start", "id": "r"},
        {"type": "reasoning-delta", "id": "r", "delta": "a thought"},
        {"type": "reasoning-end", "id": "r"},
    ]
    start, half, rest, end = text_parts("half an answer, ", "the rest of it")
    standin.play(
        calls(
            ("1", "get_population", {"city": "Paris"}),
            ("2", "get_weather", {"city": "Atlantis"}),
            ("3", "get_weather", {"city": "Tokyo"}),
        ),
        in_two_parts([*thought, start, half], release, [rest, end, demo.finish("stop", 10, 5)]),
    )
    name = uuid.uuid4().hex
    request = AgentRequest(query="Where is it foggy?", model="test/model", approve=True)
    with Proxy(environment["TEMPORAL_ADDRESS"]).serving() as proxy:
        client = await Client.connect(
            proxy.address, data_converter=data_converter, plugins=[DurableAgents(GatewayModel)]
        )
        async with (
            make_worker(client, name, max_heartbeat_throttle_interval=timedelta(milliseconds=50)),
            asyncio.timeout(BOUND),
        ):
            handle = await client.start_workflow(
                AgentWorkflow.run, request, id=f"run-{name}", task_queue=name, static_summary=request.query
            )
            while len(questions := open_questions(await (await handle.describe()).memo())) < 3:
                pass
            for call, question in questions.items():
                approval = Approval(call=call, approved="Tokyo" not in question, reason="that is nobody's business")
                assert await handle.execute_update(APPROVAL, approval, result_type=str) == question
            await watch(handle)
            while not any(
                activity.heartbeat_details.payloads
                for activity in (await handle.describe()).raw_description.pending_activities
            ):
                pass
            transcript = await handle.query(TRANSCRIPT_QUERY, result_type=Transcript)
            await handle.query("__temporal_workflow_metadata")  # what the Web UI shows of a run
            release.set()
            answer = (await handle.result()).text
        history = await handle.fetch_history()

    # Those who have the key read everything.
    assert answer == "half an answer, the rest of it"
    assert transcript.messages[1].text == "Where is it foggy?"
    results = [str(result["output"]["value"]) for result in standin.calls[1].tool_results]
    expected = ["2138551", "there is no city called 'Atlantis'", "that is nobody's business"]
    assert all(words in result for words, result in zip(expected, results, strict=True))
    replayer = Replayer(workflows=[AgentWorkflow], data_converter=data_converter, plugins=[DurableAgents()])
    await replayer.replay_workflow(history)

    # All that the server has of the run came over this wire, and so did the history when it was fetched.
    readable = {secret for secret in SECRETS for data in proxy.wire.values() if secret.encode() in data}
    carriers = {call for call, data in proxy.wire.items() if any(secret.encode() in data for secret in SECRETS)}
    if data_converter is ENCRYPTED:
        assert (readable, carriers) == (set(), set())
        assert set(proxy.wire) >= CARRIERS
    else:
        assert readable == set(SECRETS)
        assert carriers >= CARRIERS
    everything = b"".join(proxy.wire.values())
    assert [word for word in [*READABLE, name, f"run-{name}"] if word.encode() not in everything] == []


CONNECT = "            client = await Client.connect(**config, plugins=plugins{})\n"
CHANGES = {
    "from app import devserver\n": "from app import devserver\nfrom converter import data_converter\n",
    CONNECT.format(""): CONNECT.format(", data_converter=data_converter()"),
}


@pytest.fixture
def changed_sample(tmp_path: Path) -> Path:
    """A copy of the sample with the two changes of the README, and an empty folder for payloads."""
    copy_sample(tmp_path)
    shutil.copy(ROOT / "tests" / "converter.py", tmp_path)
    source = (tmp_path / "app" / "server.py").read_text()
    for old, new in CHANGES.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    (tmp_path / "app" / "server.py").write_text(source)
    (tmp_path / "payloads").mkdir()
    return tmp_path


def test_with_two_lines_changed_the_sample_encrypts_and_stores_elsewhere(
    start_main: StartMain, run_main: RunMain, standin: StandIn, changed_sample: Path, environment: dict[str, str]
) -> None:
    release, name, long_answer = threading.Event(), uuid.uuid4().hex, "a very long answer " * 20_000
    standin.play(
        status(503, message="come back later"),
        held(release, calls(("1", "get_weather", {"city": "Atlantis"}))),
        text(long_answer),
    )
    env = {
        **standin.environment,
        "TEMPORAL_ADDRESS": environment["TEMPORAL_ADDRESS"],
        "PAYLOAD_KEY": base64.b64encode(os.urandom(32)).decode(),
        "PAYLOAD_FOLDER": str(changed_sample / "payloads"),
    }
    process = start_main("Weather?", "--model", "m", "--id", name, folder=changed_sample, env=env)
    # Whoever follows the run is told of failures in plain words.
    attempt = line_with(process, "  ! ")
    assert "m, call 1: attempt 1 failed: HTTP 503: come back later" in attempt
    # Who has not the key is told at once, also while there is no answer yet.
    live = run_main("--no-worker", "--id", name, env=standin.environment)
    release.set()
    failure = line_with(process, "FAILED")
    assert failure.endswith(": there is no city called 'Atlantis'\n")
    out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, out) == (0, f"{long_answer}\n"), err

    # The answer was stored as the result of the model activity and as that of the run.
    files = stored(changed_sample / "payloads")
    assert len(files) == 2
    assert not any(b"long answer" in data for data in files)

    for unchanged in (live, run_main("--id", name, env=standin.environment)):
        assert (unchanged.returncode, unchanged.stdout) == (1, "")
        assert re.fullmatch(
            r"Error: the run cannot be read here \(.*\): is it encrypted, or stored elsewhere\?",
            unchanged.stderr.splitlines()[-1],
        )
        assert "Traceback" not in unchanged.stderr


# ── External storage ─────────────────────────────────────────────────────────────────────────────────────


def stored(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.iterdir()]


@pytest.fixture(params=["from the cache", "by query"])
def fetched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How model activities get the transcript."""
    if request.param == "by query":
        monkeypatch.setattr("bridge.transcript._cached", Forgetful())


@pytest.fixture
def storing(client: Client, tmp_path: Path) -> Client:
    """A client with external storage in a folder."""
    storage = ExternalStorage(drivers=[Folder(tmp_path)])
    config = client.config()
    config["data_converter"] = DataConverter(external_storage=storage)
    return Client(**config)


@pytest.mark.parametrize("size", [1_500_000, 5_000_000])
@pytest.mark.usefixtures("fetched")
async def test_a_large_result_is_one_file_and_leaves_the_history_small(
    storing: Client, standin: StandIn, tmp_path: Path, size: int
) -> None:
    standin.play(calls(("1", "big_result", {"size": size})), text("done"))
    name = uuid.uuid4().hex
    async with make_worker(storing, name), asyncio.timeout(BOUND):
        handle = await storing.start_workflow(agents.AnswerWorkflow.run, "go", id=name, task_queue=name)
        assert await handle.result() == "done"
        history = await handle.fetch_history()
    assert len(standin.calls[1].tool_results[0]["output"]["value"]) == size
    assert sum(event.ByteSize() for event in history.events) < 10_000
    # And no file for each page of each query, which nobody needs once the model has answered.
    assert [len(data) // 1000 for data in stored(tmp_path)] == [size // 1000]
    replayer = Replayer(
        workflows=[agents.AnswerWorkflow], data_converter=storing.data_converter, plugins=[DurableAgents()]
    )
    await replayer.replay_workflow(history)


# ── Versions ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_run_that_upgrades_is_replayed_by_the_next_build(client: Client, standin: StandIn) -> None:
    name = uuid.uuid4().hex

    def build(number: str) -> WorkerDeploymentConfig:
        return WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(deployment_name=name, build_id=number),
            use_worker_versioning=True,
            default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
        )

    async def make_current(number: str) -> None:
        request = SetWorkerDeploymentCurrentVersionRequest(
            namespace=client.namespace, deployment_name=name, build_id=number
        )
        while True:
            try:
                await client.workflow_service.set_worker_deployment_current_version(request)
                return
            except RPCError:  # its worker has not asked for work yet
                pass

    standin.play(calls(("1", "get_weather", {"city": "Tokyo"})), hang(), text("the answer"))
    async with asyncio.timeout(2 * BOUND):
        async with make_worker(client, name, deployment_config=build("1")):
            await make_current("1")
            request = AgentRequest(query="Weather?", model="test/model")
            handle = await client.start_workflow(AgentWorkflow.run, request, id=name, task_queue=name)
            await asyncio.to_thread(standin.wait_for, calls=2)
        async with make_worker(client, name, deployment_config=build("2")):
            await make_current("2")
            assert (await handle.result()).text == "the answer"
    tasks = [event.workflow_task_completed_event_attributes for event in (await handle.fetch_history()).events]
    builds = [task.deployment_version.build_id for task in tasks if task.HasField("deployment_version")]
    assert list(dict.fromkeys(builds)) == ["1", "2"]
    assert (len(standin.calls), standin.lookups) == (3, ["Tokyo"])


def test_a_run_stays_with_the_build_that_it_began_with_and_new_runs_go_to_the_current_one(
    start_main: StartMain, start_server: StartServer, standin: StandIn, environment: dict[str, str]
) -> None:
    _, address = start_server()
    env = {**environment, **standin.environment, "TEMPORAL_ADDRESS": address}
    release = threading.Event()
    standin.play(held(release, text("from the old one")), text("from the new one"))

    def temporal(*arguments: str) -> Any:
        result = temporal_command(env, *arguments, "--output", "json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def make_current(build: str) -> None:
        done_in_time(lambda: temporal_command(env, *MAKE_CURRENT, "--build-id", build))

    def start(run: str) -> None:
        of_type = ["--type", "AgentWorkflow", "--task-queue", command_line.TASK_QUEUE]
        temporal("workflow", "start", *of_type, "--workflow-id", run, "--input", '{"query": "?", "model": "m"}')

    def answer_of(run: str) -> Any:
        return temporal("workflow", "result", "--workflow-id", run)["result"]["text"]

    def build_of(run: str) -> Any:
        described = temporal(*DESCRIBE, run)
        return described["workflowExecutionInfo"]["versioningInfo"]["deploymentVersion"]["buildId"]

    workers = [start_main("--worker", env={**env, "TEMPORAL_WORKER_BUILD_ID": build}) for build in ("1", "2")]
    for worker in workers:
        line_with(worker, "ready")
    make_current("1")
    start("old")
    standin.wait_for(calls=1)
    make_current("2")
    start("new")
    assert answer_of("new") == "from the new one"
    release.set()
    assert answer_of("old") == "from the old one"
    assert (build_of("old"), build_of("new")) == ("1", "2")


# ── The README ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_profile_and_the_changes_of_the_readme_are_those_that_were_tried() -> None:
    assert PROFILE in (ROOT / "docs" / "growing.md").read_text()
    connect, connect_with = CONNECT.format(""), CHANGES[CONNECT.format("")]
    difference = f"+from converter import data_converter\n-{connect}+{connect_with}"
    assert difference in (ROOT / "docs" / "encryption.md").read_text()
