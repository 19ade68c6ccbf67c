"""How often a worker with much to do reads the answers of its models.

To read a connection costs more than what is in it, a token or two. A worker with hundreds of answers that come in at
once would do little else. So it reads all of them at the same moments, four times a second. What comes in meanwhile
waits with the operating system. Nobody has to wait for that text: when somebody watches a run, its answers are read as
they come.
"""

import asyncio

from temporalio import activity

from bridge.heartbeats import calls_under_way
from bridge.watching import is_watched

MANY = 50
"""From how many calls in a process on. Fewer are read as they come."""

EVERY = 0.25
"""Seconds from one moment to the next. It is also how much later an answer may be complete."""

SOON = 1.0
"""Seconds from the first part of an answer on in which it is read as it comes: a short answer is not held up."""


class Pace:
    """For a model class, in one call: when to hand on what has come so far.

        pace = Pace()
        async for part in parts:
            answer.add(part)
            if await pace.is_time():
                yield answer.message()

    What is not handed on has to be in the next message. Outside of an activity it is always time.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = 0.0
        self._was_read = False  # together with the part before

    async def is_time(self) -> bool:
        """Wait for the next moment, if this worker has much to do. Returns False for what was read already."""
        if self._was_read:
            return False
        now = self._loop.time()
        self._since = self._since or now
        if now - self._since > SOON and calls_under_way() >= MANY and not _is_watched():
            await asyncio.sleep(EVERY - now % EVERY)
            # What comes before the event loop comes round was read together with this.
            self._was_read = True
            self._loop.call_soon(self._came_round)
        return True

    def _came_round(self) -> None:
        self._was_read = False


def _is_watched() -> bool:
    return not activity.in_activity() or is_watched(activity.info().workflow_id or "")
