"""Temporal's dev server, shared by the processes of this folder. A real server, whose database survives `kill -9`."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

PORT, UI_PORT = 7233, 8233
STATE = Path(__file__).resolve().parent.parent / ".temporal"
START_SECONDS, STOP_SECONDS = 30, 5


class CannotServe(Exception):
    """There can be no dev server here. The message tells the reason and the remedy."""


class DevServer:
    """The dev server that the processes of this folder share when no other server is named.

    The first process starts it, the last one stops it. Three locks keep the books. The system drops a lock with the
    process that holds it, so a killed process leaves nothing wrong behind. A process holds `start.lock` while it starts
    or stops the server. The processes that use the server share `users.lock`. The server itself holds `server.lock`,
    through the file that it inherits.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._users: IO[str] | None = None

    def enter(self) -> bool:
        """Use the server: start it unless it runs. Returns False if another Temporal server may have the port.

        Raises:
            CannotServe: The folder for the server's files cannot be written, or there is no `temporal`.
        """
        try:
            STATE.mkdir(exist_ok=True)
            with self._lock("start.lock"):
                if not self._running() and answers(PORT):
                    return False
                self._users = (STATE / "users.lock").open("a")
                fcntl.flock(self._users, fcntl.LOCK_SH)
                self.ensure_running()
                return True
        except OSError as error:
            raise CannotServe(
                f"cannot keep the Temporal server's files in {STATE}: {error.strerror or error}"
            ) from error

    def ensure_running(self) -> None:
        """Start the server unless it runs. The caller holds `start.lock`.

        Raises:
            CannotServe: There is no `temporal` command.
        """
        if self._running():
            return
        binary = find_temporal()
        if binary is None:
            raise CannotServe("there is no `temporal` command: run `uv sync`, or name a server in TEMPORAL_ADDRESS")
        command = [
            *(binary, "server", "start-dev", "--ip", "127.0.0.1", "--port", str(PORT), "--ui-port", str(UI_PORT)),
            *("--db-filename", str(STATE / "temporal.db"), "--namespace", self._namespace, "--log-level", "warn"),
            *(*FAST, *KILLABLE),
        ]
        if not (STATE / "complete").exists():
            # A server that is killed while it makes its tables can never be started on them again.
            for file in STATE.glob("temporal.db*"):
                file.unlink()
        pid_file = STATE / "server.pid"
        pid_file.unlink(missing_ok=True)
        with (STATE / "server.lock").open("a") as lock, (STATE / "server.log").open("w") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.Popen(
                # The shell writes the id down before it becomes the server, so that no kill of this process can
                # leave a server that nobody knows how to stop.
                ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(pid_file), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal is for this process, not for the server
            )

    def leave(self) -> None:
        """Stop the server, unless another process uses it."""
        if self._users is None:
            return
        with self._lock("start.lock"), self._users as users:
            self._users = None
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            since = time.monotonic()
            while self._running():
                patient = time.monotonic() - since < STOP_SECONDS
                with suppress(OSError, ValueError):  # the id is not written yet, or the process gone already
                    pid = int((STATE / "server.pid").read_text())
                    os.kill(pid, signal.SIGTERM if patient else signal.SIGKILL)
                time.sleep(0.02)

    async def ready[T](self, connect: Callable[[], Awaitable[T]]) -> T:
        """Connect to the server as soon as it can be used.

        Args:
            connect: Tried again and again, since a server that is just starting, or is killed, has many ways to fail.

        Raises:
            CannotServe: It ended, and again when it was started again.
            Exception: What `connect` raises of a server that had its time.
        """
        since, answered, restarted = time.monotonic(), False, False
        while True:
            try:
                client = await connect()
                (STATE / "complete").touch()  # the database is whole
                return client
            except Exception as error:
                if why := self.why_stopped():
                    if restarted:
                        raise CannotServe(f"the Temporal server did not start: {why}") from error
                    since, answered, restarted = time.monotonic(), False, True  # it may have been killed by somebody
                    self.start_again()
                elif not answered and answers(PORT):
                    since, answered = time.monotonic(), True  # it makes its namespace a moment after it opens its port
                if time.monotonic() - since > (5 if answered else START_SECONDS):
                    raise
            await asyncio.sleep(0.02)

    def start_again(self) -> None:
        """Start the server if it is gone: the runs are in its database and go on."""
        with self._lock("start.lock"):
            if self._users is not None:  # a thread that does this may be late, and `leave()` done
                self.ensure_running()

    async def keep_running(self) -> None:
        while True:
            await asyncio.sleep(1)
            with suppress(OSError, CannotServe):  # the next second may be better
                await asyncio.to_thread(self.start_again)

    def why_stopped(self) -> str | None:
        """None while the server runs; otherwise the last thing it said."""
        if self._running():
            return None
        lines = (STATE / "server.log").read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (see {STATE / 'server.log'})"

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (STATE / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _running(self) -> bool:
        with (STATE / "server.lock").open("a") as file:
            try:
                # The server holds it exclusively. A share of it does for asking, so that two processes may ask at once.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


FAST = ["--dynamic-config-value", "history.transferProcessorMaxPollRPS=10000"]
"""By default the dev server waits 50 ms before every workflow task."""

KILLABLE = ["--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"]
"""A database that survives a killed process, for a third of the time of the default."""


def find_temporal() -> str | None:
    # The venv's own first: `uv run` puts it on the PATH, calling the venv's Python does not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("temporal", path=path)


def answers(port: int) -> bool:
    """Whether somebody listens on this port of the machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@asynccontextmanager
async def dev_server[T](namespace: str, connect: Callable[[], Awaitable[T]]) -> AsyncIterator[tuple[T, bool]]:
    """Have a Temporal server on `PORT` while the body runs: this folder's, started again when it is gone, or one that
    has the port already.

    Args:
        namespace: A namespace for it to have, besides the default one.
        connect: Makes a client. Tried again while the server starts.

    Yields:
        The client, and whether the server is this folder's.

    Raises:
        CannotServe: There can be none.
        Exception: What `connect` raises of a server that had its time.
    """
    if sys.platform == "win32":
        async with _downloaded_server(namespace) as is_ours:
            yield await connect(), is_ours
        return
    server = DevServer(namespace)
    if not server.enter():
        yield await connect(), False
        return
    keeper = None
    try:
        client = await server.ready(connect)
        keeper = asyncio.create_task(server.keep_running())
        yield client, True
    finally:
        if keeper:
            keeper.cancel()
        server.leave()


@asynccontextmanager
async def _downloaded_server(namespace: str) -> AsyncIterator[bool]:
    """The dev server where there is no wheel and no file locks (Windows): not shared, and downloaded if need be."""
    from temporalio.testing import WorkflowEnvironment

    if answers(PORT):
        yield False
        return
    STATE.mkdir(exist_ok=True)
    try:
        environment = await WorkflowEnvironment.start_local(
            namespace=namespace,
            port=PORT,
            ui=True,
            ui_port=UI_PORT,
            dev_server_existing_path=find_temporal(),
            dev_server_database_filename=str(STATE / "temporal.db"),
            dev_server_extra_args=[*FAST, *KILLABLE],
        )
    except RuntimeError as error:
        raise CannotServe(f"no Temporal server, and none can be downloaded: {error}") from error
    async with environment:
        yield True
