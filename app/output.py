"""Standard output has the answer and nothing else; everything that is said besides goes to standard error."""

import io
import logging
import os
import re
import sys
import traceback
from contextlib import suppress
from typing import TextIO

from rich.console import Console
from rich.markdown import Markdown
from temporalio import exceptions, runtime

COMMAND = "uv run python main.py"


class UserError(Exception):
    """An error that the user can put right. The message is one line: the fault and the remedy."""


def say(text: str) -> None:
    """Write a line to standard error. Where that is closed, full or a broken pipe the answer is still wanted."""
    if sys.stderr is not None:  # print() would take standard output for it
        with suppress(OSError):
            print(printable(text), file=sys.stderr, flush=True)


def print_answer(text: str) -> None:
    """Write the answer to standard output. UserError: it cannot be written there."""
    try:
        if sys.stdout is None:  # the parent process closed it
            raise OSError("there is no standard output")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that has no "°" is no reason to lose the answer
        if in_color(sys.stdout):
            Console().print("", markdown(text), "", sep="\n")
        else:
            print(printable(text) if sys.stdout.isatty() else text, flush=True)
    except BrokenPipeError:
        pass  # the reader has read enough
    except OSError as error:
        raise UserError(f"the answer cannot be written: {one_line(error)}") from error


def print_plain(text: str) -> None:
    """Write lines to standard output. UserError: they cannot be written there."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        pass  # the reader has read enough
    except OSError as error:
        raise UserError(f"the list cannot be written: {one_line(error)}") from error


def say_error(error: BaseException, debug: bool) -> None:
    """Say an error in one line; with `debug` after its traceback."""
    if debug:
        say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, UserError):
        say(f"Error: {error}")
    else:
        say(f"Error: {type(error).__name__}: {one_line(error)} (a bug; --debug shows where)")


def set_up_logging(debug: bool) -> None:
    """Have errors that libraries log said in single lines; with `debug` all that they log, and tracebacks."""
    handler: logging.Handler = logging.StreamHandler() if debug else OneLine()
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, handlers=[handler])
    # The runtime logs to standard output by default.
    log = runtime.LoggingConfig("ERROR", forwarding=runtime.LogForwardingConfig(logging.getLogger("temporal")))
    runtime.Runtime.set_default(runtime.Runtime(telemetry=runtime.TelemetryConfig(logging=log)))


class OneLine(logging.Handler):
    """Says log records in single lines, without tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        say(f"{record.name}: {record.getMessage()}{f': {one_line(error)}' if error else ''}")


# ── Text for people ──────────────────────────────────────────────────────────────────────────────────────


def printable(text: str) -> str:
    """The text without control codes: the words of a model or a service must not drive the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def one_line(error: BaseException) -> str:
    """The text of an error, or the name of its type if it has none."""
    text = error.message if isinstance(error, exceptions.FailureError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def title(text: str, length: int = 80) -> str:
    """The text in one short line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def in_color(stream: TextIO | None) -> bool:
    """Whether control codes are welcome there."""
    plain = os.environ.get("NO_COLOR") or is_dumb()
    return not plain and stream is not None and stream.isatty()


def is_dumb() -> bool:
    """Whether the terminal knows no control codes at all."""
    return os.environ.get("TERM", "dumb") == "dumb"


def markdown(text: str, style: str = "none") -> Markdown:
    """The words of a model, for a terminal. A line end in them is meant, but in Markdown it is just a space."""
    return Markdown(re.sub(r"(?<=\S)\n(?=\S)", "  \n", printable(text)), style=style)
