"""The words of the command line, and wrong usage. Imports nothing that takes long to load."""

import argparse
import importlib
import itertools
import json
import os
import sys
import unicodedata
from datetime import timedelta
from types import ModuleType

DEFAULT_MODEL = "anthropic/claude-sonnet-4.6"
TASK_QUEUE = "durable-agent"
OFFLINE_TASK_QUEUE = "durable-agent-offline"
"""Of its own, so that no demo worker ever answers for a real model, nor the other way round."""


class Options(argparse.Namespace):
    """The wishes of the command line and the environment."""

    query: str | None
    id: str | None
    model: str
    offline: bool
    worker: bool
    no_worker: bool
    approve: bool
    yes: str | None
    no: str | None
    resolve: list[str] | None
    """Label of a hook, and a JSON object."""
    chat: bool
    idle_limit: timedelta | None
    stop: bool
    end: bool
    list: bool
    reason: str | None
    max_activities: int | None
    debug: bool
    task_queue: str

    @property
    def answers(self) -> bool:
        """Whether this process only answers a question of a run."""
        return bool(self.yes or self.no or self.resolve)

    @property
    def has_worker(self) -> bool:
        """Whether this process runs a worker. Signals and visibility need none."""
        return not (self.no_worker or self.stop or self.end or self.list)

    @property
    def makes_calls(self) -> bool:
        """Whether its worker makes model and tool calls."""
        return self.has_worker and not self.answers


def parse(arguments: list[str]) -> Options:
    """Read the command line. Exits with status 2 and one line on standard error if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="main.py", description="Ask a durable agent about the weather and population of cities."
    )
    parser.add_argument("query", nargs="?", metavar="QUERY", help="the question; - reads it from standard input")
    parser.add_argument("--id", help="name of the conversation; goes on with the one of that name if there is one")
    parser.add_argument("--chat", action="store_true", help="converse; the conversation stays open until --end")
    parser.add_argument(
        "--idle-limit",
        type=_duration,
        metavar="TIME",
        help="with --chat: end a new conversation after 90s, 30m, 12h or 7d without a message (default: never)",
    )
    parser.add_argument("--model", help=f"model to ask (default: $AI_MODEL or {DEFAULT_MODEL})")
    parser.add_argument("--offline", action="store_true", help="use the demo model and sample data")
    parser.add_argument("--approve", action="store_true", help="ask for your approval before each tool call")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--worker", action="store_true", help="only serve, until interrupted")
    mode.add_argument("--no-worker", action="store_true", help="only submit and follow; a worker runs elsewhere")
    mode.add_argument("--stop", action="store_true", help="stop the agent at once, in the conversation --id")
    mode.add_argument("--end", action="store_true", help="end the open conversation --id")
    mode.add_argument("--list", action="store_true", help="list the conversations, and what they wait for")
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--yes", metavar="CALL", help="approve a tool call or a hook of the run --id")
    answer.add_argument("--no", metavar="CALL", help="refuse a tool call or a hook of the run --id")
    answer.add_argument("--resolve", nargs=2, metavar=("LABEL", "JSON"), help="resolve any hook of the run --id")
    parser.add_argument("--reason", help="why not, for the model to read; with --no")
    parser.add_argument(
        "--max-activities",
        type=_number,
        metavar="N",
        help="model and tool calls of this process at once (default: 2000)",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and logs (or DURABLE_DEBUG=1)")
    options = parser.parse_args(arguments, namespace=Options())
    _check_usage(parser, options)
    _check_texts(parser, options)

    options.debug = options.debug or os.environ.get("DURABLE_DEBUG", "0") not in ("", "0")
    options.offline = options.offline or not (options.no_worker or os.environ.get("AI_GATEWAY_API_KEY"))
    options.task_queue = OFFLINE_TASK_QUEUE if options.offline else TASK_QUEUE
    default = "offline/demo" if options.offline else DEFAULT_MODEL
    options.model = options.model or os.environ.get("AI_MODEL", "").strip() or default
    return options


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _check_usage(parser: argparse.ArgumentParser, options: Options) -> None:
    if options.worker and (options.query or options.id or options.model):
        parser.error("--worker only serves: it takes no query, --id or --model")
    if options.list and (options.query or options.id or options.model):
        parser.error("--list lists all conversations: it takes no query, --id or --model")
    if (options.stop or options.end) and (options.id is None or options.query is not None):
        parser.error("--stop and --end are for a conversation: they take its --id and no query")
    if options.chat and (options.worker or options.answers or options.stop or options.end or options.list):
        parser.error("--chat converses: it takes only a query, --id, --model, --approve and the like")
    if options.idle_limit is not None and not options.chat:
        parser.error("--idle-limit is for a new conversation: it belongs to --chat")
    if options.answers and (options.id is None or options.query is not None):
        parser.error("--yes, --no and --resolve answer a question of a run: they take its --id and no query")
    if options.reason is not None and options.no is None:
        parser.error("--reason says why not: it belongs to --no")
    if options.approve and (options.worker or (options.id is not None and options.query is None and not options.chat)):
        parser.error("--approve is for starting a run: it takes a query")


def _check_texts(parser: argparse.ArgumentParser, options: Options) -> None:
    if options.query == "-":
        options.query = _standard_input()
    for name in ("query", "id", "model", "yes", "no", "reason"):
        if (value := getattr(options, name)) is not None:
            setattr(options, name, _text(parser, "the query" if name == "query" else f"--{name}", value))
    if options.resolve is not None:
        options.resolve = [_text(parser, "--resolve", value) for value in options.resolve]
        if not _is_json_object(options.resolve[1]):
            parser.error("--resolve takes the label of a hook and a JSON object")
    if options.id is not None and (size := len(options.id.encode())) > 1000:
        parser.error(f"--id has {size:,} bytes, over the limit of 1,000")  # the server's


UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _duration(text: str) -> timedelta:
    if not (text.isascii() and text[:-1].isdecimal() and int(text[:-1]) > 0 and text[-1] in UNITS):
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 30m, 12h or 7d")
    try:
        return timedelta(**{UNITS[text[-1]]: int(text[:-1])})
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} is too long") from None


def _standard_input() -> str:
    read = sys.stdin.buffer.read() if sys.stdin else b""  # none if the parent process closed it
    return read.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape").strip()  # without a BOM


def _text(parser: argparse.ArgumentParser, name: str, value: str) -> str:
    """The value with lines that end in LF, if it is text; anything else is wrong usage."""
    value = value.replace("\r\n", "\n")
    if problem := problem_of(value):
        parser.error(f"{name} {problem}")
    return value


def problem_of(text: str) -> str:
    """What is wrong with a text that somebody wants to send, or nothing."""
    if not text.strip():
        return "is empty"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "is not valid UTF-8"
    if any(unicodedata.category(character) == "Cc" and character not in "\n\t" for character in text):
        return "contains control characters"
    return ""


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


# ── Start-up time ────────────────────────────────────────────────────────────────────────────────────────


USED_BY_FEW = [
    ["vercel_ai_sdk.anthropic"],
    ["vercel_ai_sdk.openai"],
    ["mcp", "mcp.types", "mcp.client.session", "mcp.client.stdio", "mcp.client.streamable_http"],
    ["app.demo"],
]
"""What most runs do without: modules that are loaded together. Of `mcp`, all that the SDK imports."""


class LoadedWhenUsed(ModuleType):
    """Stands in `sys.modules` for a module that takes long to load, until something of it is used."""

    def __getattr__(self, name: str) -> object:
        together = next(modules for modules in USED_BY_FEW if self.__name__ in modules)
        for module in together:
            if isinstance(sys.modules.get(module), LoadedWhenUsed):
                del sys.modules[module]
        for module in together:
            importlib.import_module(module)
        return getattr(sys.modules[self.__name__], name)


def load_when_used() -> None:
    """Keep the SDK from loading the libraries of all its providers and of MCP, and main.py from loading the demo, which
    together takes over two seconds. Call it before their import. This agent asks the gateway, and has no MCP server."""
    for name in itertools.chain.from_iterable(USED_BY_FEW):
        sys.modules.setdefault(name, LoadedWhenUsed(name))
