"""How often a worker with much to do reads the answers of its models.

A read of a connection costs more than the token or two that it brings. A worker with hundreds of answers that come in
at once would do little else. So it reads all of them at the same moments, four times a second. Tokens that come in
meanwhile wait with the operating system. Nobody has to wait for them: when somebody watches a run, its answers are read
as they come.
"""

import asyncio
from collections.abc import Callable

import vercel_ai_sdk as ai
from temporalio import activity

from bridge.heartbeats import calls_under_way, show
from bridge.watching import is_watched

MANY = 50
"""From how many calls in a process on. Fewer are read as they come."""

EVERY = 0.25
"""Seconds from one moment to the next. It is also how much later an answer may be complete."""


class Pace:
    """For a model class, in one call: when to yield what has come so far.

        pace = Pace(answer.message)
        async for part in parts:
            answer.add(part)
            if await pace.is_time():
                yield answer.message()

    Outside of an activity it is always time.

    Args:
        so_far: The message with all that has come.
    """

    def __init__(self, so_far: Callable[[], ai.Message]) -> None:
        self._so_far = so_far
        self._is_first = True
        self._came_together = self._is_held_back = False

    async def is_time(self) -> bool:
        """Wait for the next moment, if this worker has much to do. Returns False for a part that came together with one
        before it: both will be in the next message. There is no wait at first, so an answer that comes all at once is
        not held up."""
        if self._came_together:
            self._is_held_back = True
            return False
        if calls_under_way() >= MANY and activity.in_activity() and not is_watched(activity.info().workflow_id or ""):
            loop = asyncio.get_running_loop()
            if not self._is_first:
                await asyncio.sleep(EVERY - loop.time() % EVERY)
            # A part that comes before the event loop comes round was read already.
            self._came_together, self._is_held_back = True, False
            loop.call_soon(self._came_round)
        self._is_first = False
        return True

    def _came_round(self) -> None:
        self._came_together = False
        if self._is_held_back:  # the model may be silent from here on, and somebody may begin to watch
            show(self._so_far())
