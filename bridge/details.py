"""The current doings of a run, on its page in the Web UI."""

from collections.abc import Iterator
from contextlib import contextmanager

from temporalio import workflow

from bridge.of_run import of_run
from bridge.transcript import run_transcript

SUMMARY_BYTES = 200
"""Longest summary given to an activity. The server refuses one over 400 bytes, and encryption makes it longer."""

SHOWN = 20
"""Doings that are listed. A thousand tool calls at once would make, and read, a thousand such lists."""


def shortened(text: str, limit: int = SUMMARY_BYTES) -> str:
    """The text, cut to a number of bytes."""
    data = text.encode()
    return text if len(data) <= limit else data[:limit].decode(errors="ignore") + "…"


class _UnderWay(list[str]):
    """The current doings of a workflow run."""


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Have the Web UI show that the run is doing this while the body runs."""
    what = shortened(what)
    under_way = of_run(_UnderWay)
    under_way.append(what)
    _show(under_way)
    try:
        yield
    finally:
        under_way.remove(what)
        if workflow.in_workflow():  # not while the run is evicted from the worker's cache
            _show(under_way)


def _show(under_way: list[str]) -> None:
    lines = [f"- {what}" for what in under_way[:SHOWN]] or ["nothing is under way"]
    if len(under_way) > SHOWN:
        lines += [f"- and {len(under_way) - SHOWN:,} more"]
    if usage := run_transcript().usage:
        lines += ["", f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"]
    workflow.set_current_details("\n".join(lines))
