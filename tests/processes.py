"""What tests read from processes and how they end them, in a bounded time."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SECONDS = 60
"""Far more than any process takes for its next line, on a loaded machine too."""


@contextmanager
def killed_if_late(process: subprocess.Popen[Any], seconds: float = SECONDS) -> Iterator[None]:
    """Kill the process if the body takes longer: what it writes then comes to its end, and so does who reads it."""
    late = threading.Timer(seconds, _kill_all, [process])
    late.start()
    try:
        yield
    finally:
        late.cancel()


def _kill_all(process: subprocess.Popen[Any]) -> None:
    process.kill()
    with suppress(ProcessLookupError):  # it does not lead a group: then it has no processes of its own
        os.killpg(process.pid, signal.SIGKILL)


def lines_until(process: subprocess.Popen[str], *words: str, seconds: float = SECONDS) -> list[str]:
    """What the process writes to standard error, up to the first line with all of these words in it.

    Raises:
        AssertionError: There is none, or it does not come in time. The process is killed then.
    """
    assert process.stderr is not None
    read: list[str] = []
    with killed_if_late(process, seconds):
        for line in process.stderr:
            read.append(line)
            if all(word in line for word in words):
                return read
    raise AssertionError(f"no line with {words} within {seconds:g} s, only: {read}")


def line_with(process: subprocess.Popen[str], *words: str, seconds: float = SECONDS) -> str:
    """The first line on standard error with all of these words in it; AssertionError as above."""
    return lines_until(process, *words, seconds=seconds)[-1]


def first_line[Text: (str, bytes)](process: subprocess.Popen[Text], seconds: float = SECONDS) -> Text:
    """The first line on standard output. AssertionError: there is none, or it does not come in time."""
    assert process.stdout is not None
    with killed_if_late(process, seconds):
        line = process.stdout.readline()
    assert line, f"the process wrote nothing within {seconds:g} s"
    return line


def kill(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait(SECONDS)


def end[Text: (str, bytes)](process: subprocess.Popen[Text]) -> tuple[Text, Text]:
    """Kill the process. Returns what else it wrote to its pipes, which a process that it left behind may hold open."""
    process.kill()
    return process.communicate(timeout=SECONDS)
