"""Temporal dev servers for tests, the marathon and the benchmark, several at a time."""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from processes import end, killed_if_late

from app import devserver

LOOPBACK = "127.0.0.1"


@contextmanager
def dev_server(
    *settings: str, port: int = 0, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Have a dev server on loopback while the body runs. Yields its process and its address once it is ready.

    Args:
        settings: More options for `temporal server start-dev`.
        port: Where it is to be, or 0 for anywhere.
        env: More variables of its environment.
    """
    binary = devserver.find_temporal()
    if binary is None:
        raise RuntimeError("there is no `temporal` command: run `uv sync`")
    # A server also takes ports for its own parts, and now and then two that start together want the same ones.
    for _ in range(5):
        # Lower than what a system hands out, so that one which is started again finds its port free.
        number = port or random.randrange(20_000, 30_000)
        command = [binary, "server", "start-dev", "--headless", "--ip", LOOPBACK, "--port", str(number), *settings]
        process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for the server
        )
        try:
            assert process.stdout is not None
            # What answers on the port may be another server; only this one says that it is ready.
            with killed_if_late(process):
                ready = any(line.startswith(b"Temporal Server:") for line in process.stdout)
            if ready:
                yield process, f"{LOOPBACK}:{number}"
                return
        finally:
            end(process)
    raise RuntimeError("the Temporal server ends before it is ready")
