"""How often a worker reads the answers of its models.

Each read of a connection costs more than what is in it: a token or two. A worker with hundreds of answers that come in
at once would do little else. So it leaves what comes in with the operating system for a moment, and reads more of it at
once. Nobody has to wait for that text: when somebody watches a run, its answers are read as they come.
"""

import asyncio

from temporalio import activity

from bridge.heartbeats import calls_under_way
from bridge.watching import is_watched

READS = 500
"""Of all model calls of a process together in a second, about. With 100 calls, each is read five times a second."""

SHORTEST, LONGEST = 0.05, 0.25
"""Seconds between two reads of a call. It is also how much later an answer may be complete. A shorter pause would save
next to nothing."""

SOON = 1.0
"""Seconds from the first part of an answer on in which there is no pause: a short answer, or a tool call, is not held
up."""


class Pace:
    """For a model class, in one call: when to look at what has come so far.

        pace = Pace()
        async for part in parts:
            answer.add(part)
            if await pace.is_time():
                yield answer.message()

    What is not yielded has to be a part of the next message. Outside of an activity it is always time.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._is_first = True

    async def is_time(self) -> bool:
        """Pause if this worker has much to read. Returns False for what came together with something before it."""
        if not self._is_first:
            return False
        loop = asyncio.get_running_loop()
        seconds = _pause()
        if self._since is None:
            self._since = loop.time()
        if not seconds or loop.time() - self._since < SOON:
            return True
        await asyncio.sleep(seconds)
        # What comes before the event loop comes round was read already.
        self._is_first = False
        loop.call_soon(self._came_round)
        return True

    def _came_round(self) -> None:
        self._is_first = True


def _pause() -> float:
    """Seconds between two reads of the current call."""
    seconds = min(calls_under_way() / READS, LONGEST)
    if seconds < SHORTEST or not activity.in_activity() or is_watched(activity.info().workflow_id or ""):
        return 0.0
    return seconds
