"""How this process ends: in order, by Ctrl-C or SIGTERM, or with its worker."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType

from temporalio.service import RPCError

from app.command_line import Options
from app.output import UserError, one_line


class Ending:
    """Turns signals and failures into an exit status: `async with Ending(options) as ending` around all the work.

    The first signal cancels the work, a later one ends the process. `asyncio.run()` alone would cancel a worker a
    second time while it shuts down, which may then never end. And a signal may come twice, to the process and to its
    group: only one that comes a second later is a second wish.

    Raises:
        UserError: The worker stopped, or the server refused.
    """

    def __init__(self, options: Options) -> None:
        self.status = 0
        self._status_if_interrupted = 0 if options.worker else 130
        self._interrupted = False
        self._worker_failure: BaseException | None = None
        self._since: float | None = None  # when the end began, by the monotonic clock

    async def __aenter__(self) -> "Ending":
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None and self._worker_failure is not None:
            raise UserError(f"the worker stopped: {one_line(self._worker_failure)}") from self._worker_failure
        if isinstance(error, RPCError):
            raise UserError(f"the Temporal server refused: {one_line(error)}") from error
        return self._interrupted and isinstance(error, asyncio.CancelledError)

    @asynccontextmanager
    async def work(self) -> AsyncIterator[None]:
        """Around the work that a worker is for: after it, a signal can only end the process."""
        try:
            yield
        finally:
            self._begin()

    async def worker_failed(self, failure: BaseException) -> None:
        """For the worker to tell of its failure."""
        self._worker_failure = failure

    def _begin(self) -> None:
        self._since = self._since or time.monotonic()

    def _interrupt(self, *_: object) -> None:
        if self._since is None:
            self._interrupted, self.status = True, self._status_if_interrupted
            self._begin()
            with suppress(RuntimeError):  # the loop is closed
                if self._task is not None:
                    self._loop.call_soon_threadsafe(self._task.cancel)
        elif time.monotonic() - self._since > 1:
            os._exit(130)
