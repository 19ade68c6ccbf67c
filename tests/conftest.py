"""One real Temporal dev server for all tests, real HTTP stand-ins for the rest."""

import asyncio
import faulthandler
import fcntl
import functools
import gc
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, override

import app.demo  # noqa: F401  # before the call below, since tests change what is in it
from app.command_line import load_when_used

# As main.py does. The tests start many processes, and this takes a second and a half off each of them.
load_when_used()

import agents
import pytest
from processes import end
from servers import dev_server
from standin import StandIn
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import Worker
from terminal import Terminal

from app import devserver
from durable import HEARTBEAT_TIMEOUT
from options.gateway import GatewayModel
from plugin import DurableAgents
from workflow import AgentWorkflow
from workflow_types import AgentAnswer, AgentRequest

# To look through all that was imported takes half a second on a busy machine, and in a workflow task that is too long.
gc.freeze()

# What one of the many processes has compiled is for all of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bridge", "options", "app")
TEMPORAL_SETTINGS = ("TEMPORAL_", "AI_GATEWAY_", "AI_MODEL", "OPEN_METEO_")
TERMINAL_SETTINGS = ("TERM", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_", "COLUMNS", "LINES")

type RunMain = Callable[..., subprocess.CompletedProcess[str]]
type StartMain = Callable[..., subprocess.Popen[str]]
type OpenTerminal = Callable[..., Terminal]
type StartServer = Callable[..., tuple[subprocess.Popen[bytes], str]]
type StartAgent = Callable[..., Awaitable[WorkflowHandle[AgentWorkflow, AgentAnswer]]]


@pytest.fixture(scope="session")
async def client() -> AsyncIterator[Client]:
    """A client of the server that the tests of this process share."""
    # By default a run starts no sooner than a second after the one that it continues.
    at_once = ("--dynamic-config-value", 'history.workflowIdReuseMinimalInterval="0s"')
    # The tests keep all cores busy: the server takes a fifth less of them with one thread, and memory to spare.
    with dev_server(*devserver.FAST, *at_once, env={"GOMAXPROCS": "1", "GOGC": "400"}) as (_, address):
        yield await Client.connect(address, plugins=[DurableAgents(GatewayModel)])


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The services, for this process and for those that `run_main` starts."""
    with StandIn().serving() as services:
        for name, value in services.environment.items():
            monkeypatch.setenv(name, value)
        yield services


def make_worker(client: Client, queue: str, **options: Any) -> Worker:
    # Late enough to be cheap for hundreds of calls at once, early enough for a loaded machine.
    options.setdefault("max_heartbeat_throttle_interval", HEARTBEAT_TIMEOUT / 3)
    return Worker(
        client,
        task_queue=queue,
        workflows=[AgentWorkflow, *agents.WORKFLOWS],
        **options,
    )


@pytest.fixture(scope="session")
async def queue(client: Client) -> AsyncIterator[str]:
    """The task queue of a worker in this process."""
    async with make_worker(client, "tests"):
        yield "tests"


@pytest.fixture
def start_agent(client: Client, queue: str, standin: StandIn) -> StartAgent:
    async def start(query: str = "Weather in Tokyo", **options: Any) -> WorkflowHandle[AgentWorkflow, AgentAnswer]:
        request = AgentRequest(query=query, model="test/model", **options)
        return await client.start_workflow(
            AgentWorkflow.run, request, id=f"test-{uuid.uuid4().hex[:8]}", task_queue=queue
        )

    return start


@pytest.fixture
async def alone(client: Client) -> None:
    """End what an earlier test left open: a worker of this one would make its calls, with replies meant for others."""
    async for left in client.list_workflows('ExecutionStatus = "Running"'):
        with suppress(RPCError):  # it has ended meanwhile
            await client.get_workflow_handle(left.id).terminate()


@pytest.fixture
def environment(client: Client, alone: None) -> dict[str, str]:
    """A clean environment for `main.py`, with the address of the tests' server and nothing else."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(TEMPORAL_SETTINGS)}
    return {**clean, "TEMPORAL_ADDRESS": client.service_client.config.target_host}


@pytest.fixture
def run_main(environment: dict[str, str]) -> RunMain:
    """Run `main.py` as a user does, in a process of its own, and wait for its end."""

    def run(
        *arguments: str,
        script: Path = ROOT / "main.py",
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=cwd,
            env={**environment, **(env or {})},
            input=input.encode() if input is not None else None,  # as it is, whatever ends its lines
            capture_output=True,
            timeout=60,
            check=False,
        )
        return subprocess.CompletedProcess(
            result.args, result.returncode, result.stdout.decode(), result.stderr.decode()
        )

    return run


@pytest.fixture
def start_main(environment: dict[str, str]) -> Iterator[StartMain]:
    """Start `main.py` in the background, on the tests' server or, in another folder, on that folder's own."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, folder: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        named = environment if folder == ROOT else {k: v for k, v in environment.items() if k != "TEMPORAL_ADDRESS"}
        process = subprocess.Popen(
            [sys.executable, str(folder / "main.py"), *arguments],
            env={**named, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
    for process in processes:
        print(process.args, *end(process), sep="\n")  # shown where a test fails


@pytest.fixture
def open_terminal(environment: dict[str, str]) -> Iterator[OpenTerminal]:
    """Start `main.py` in a terminal of its own, as `start_main` does without one."""
    terminals: list[Terminal] = []

    def start(*arguments: str, folder: Path = ROOT, env: dict[str, str] | None = None, **options: Any) -> Terminal:
        named = {name: value for name, value in environment.items() if not name.startswith(TERMINAL_SETTINGS)}
        if folder != ROOT:
            del named["TEMPORAL_ADDRESS"]
        command = [sys.executable, str(folder / "main.py"), *arguments]
        terminals.append(Terminal(command, {**named, "TERM": "xterm-256color", **(env or {})}, **options))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start a Temporal server of the test's own, and wait until it answers. Returns its process and its address."""
    with ExitStack() as servers:
        yield lambda *settings, **options: servers.enter_context(dev_server(*settings, **options))


class Forgetful(dict[str, Any]):
    """In the place of the requests in this process: model activities have to fetch them by query."""

    @override
    def __setitem__(self, key: str, value: object) -> None:
        pass


def copy_sample(folder: Path) -> None:
    """Copy what the sample needs to run."""
    for file in (*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).glob("*.py"))):
        (folder / file.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(file, folder / file.relative_to(ROOT))


def take_turn(lock: IO[str], seconds: float = 180) -> None:
    """Wait for a lock. The ports are one machine's, so tests in other processes take turns."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            assert time.monotonic() < until, f"another test has had the ports of the dev server for {seconds:g} s"
            time.sleep(0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A copy of the sample with a `.temporal` of its own, in a world where nothing is on Temporal's ports."""
    with (Path(tempfile.gettempdir()) / "durable-agent-ports.lock").open("w") as lock:
        take_turn(lock)
        if devserver.answers(devserver.PORT) or devserver.answers(devserver.UI_PORT):
            pytest.skip("something else uses the ports of the dev server")
        copy_sample(tmp_path)
        yield tmp_path
        assert not devserver.answers(devserver.PORT), "the dev server was left behind"


# ── Nothing waits for ever ───────────────────────────────────────────────────────────────────────────────

BOUND = 180
"""Seconds for the body of a test that awaits: less than `faulthandler_timeout`, since this shows where it waits."""

type Test = Callable[..., Coroutine[Any, Any, None]]


def bounded(test: Test) -> Test:
    @functools.wraps(test)
    async def run(*arguments: Any, **named: Any) -> None:
        async with asyncio.timeout(BOUND):
            await test(*arguments, **named)

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # These are long and mostly wait: at the end of the suite, the other processes would wait for them.
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/test_web.py", "tests/test_crashes.py")))
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = bounded(item.obj)


_status = 0
_stderr = 2


def pytest_configure() -> None:
    global _stderr  # noqa: PLW0603  # while a test runs, pytest has another file in its place
    _stderr = os.dup(_stderr)


def end_if_it_hangs(config: pytest.Config) -> None:
    """As `faulthandler_timeout` does. That is off once a test has failed, and does not reach the end of a process."""
    faulthandler.dump_traceback_later(float(config.getini("faulthandler_timeout")), file=_stderr, exit=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    end_if_it_hangs(item.config)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    global _status  # noqa: PLW0603  # the hook below is not told
    _status = int(exitstatus)
    end_if_it_hangs(session.config)


def pytest_unconfigure() -> None:
    # Threads of the Temporal runtime may crash an interpreter that takes itself down, see the end of main.py.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)
