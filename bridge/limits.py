"""What one workflow run may have at once, so that the server does not end it.

A server refuses more than 2,000 pending activities, again and again, and ends a run whose history has more than 51,200
events or 50 MB (defaults of Temporal).
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from bridge.details import doing
from bridge.of_run import of_run
from bridge.wire import PAYLOAD_LIMIT

IN_FLIGHT = 1000
"""Activities of a run at once. Others wait for one of them to end."""

EVENTS = 50_000
"""In the history of a run. From here on no call is begun."""

RESULTS = 40 * 1024 * 1024
"""Bytes that the results of all tool calls in one message may have together."""


class _Limits:
    """Of one workflow run."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(IN_FLIGHT)
        self.result_limit: int | None = None


@asynccontextmanager
async def in_flight(what: str) -> AsyncGenerator[None]:
    """Wait until the run may have another activity, which is the body.

    Args:
        what: The Web UI shows that the run is doing this.

    Raises:
        ApplicationError: The history is full.
    """
    async with of_run(_Limits).free:
        events = workflow.info().get_current_history_length()
        if events > EVENTS:
            raise ApplicationError(
                f"the calls of one turn do not fit into a history: it has {events:,} events already",
                type="HistoryFull",
                non_retryable=True,
            )
        with doing(what):
            yield


def expect_results(calls: int) -> None:
    """Share what a history may have among the results of so many tool calls, which come in one message."""
    share = RESULTS // max(calls, 1)
    of_run(_Limits).result_limit = share if share < PAYLOAD_LIMIT else None


def result_limit() -> int | None:
    """How many bytes the result of a tool call may have. None: as many as a payload."""
    return of_run(_Limits).result_limit
