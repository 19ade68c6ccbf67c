"""Ctrl-C and SIGTERM: the first one ends the work in order, a later one ends the process."""

import asyncio
import os
import signal
import time
from contextlib import suppress


class Interrupts:
    """Cancels the current task at the first signal.

    `asyncio.run()` alone would cancel a worker a second time while it shuts down, which may then never end. And a
    signal may come twice, to the process and to its group: only one that comes a second later is a second wish.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._ending: float | None = None  # since when, by the monotonic clock
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def end(self) -> None:
        """The work is done, and the worker shuts down: from now on, a signal can only end the process."""
        self._ending = self._ending or time.monotonic()

    def _interrupt(self, *_: object) -> None:
        if self._ending is None:
            self.interrupted = True
            self.end()
            with suppress(RuntimeError):  # the loop is closed
                if self._task is not None:
                    self._loop.call_soon_threadsafe(self._task.cancel)
        elif time.monotonic() - self._ending > 1:
            os._exit(130)
