"""How many activities a worker takes on: as many as its event loop can serve, not a constant.

A model call is mostly waiting, and a thousand of them wait as well as one. Temporal's default of 100 would leave the
others in the queue. But with a fixed 2,000, say, a busy worker takes on more than it can begin.
"""

import asyncio
import threading
import time
from contextlib import suppress
from typing import override
from weakref import ref

from temporalio.worker import (
    CustomSlotSupplier,
    FixedSizeSlotSupplier,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
    WorkerTuner,
)

WORKFLOW_TASKS = 8
"""Workflow tasks at once. They are computing, which only one thread of the process does at a time. Temporal takes a
workflow task that lasts 2 s for a deadlock, and many at once would each last long."""

TICK = 0.1
"""Seconds between two looks at the event loop."""

FILES_BESIDE = 200
"""Open files that a process needs beside one connection for each activity."""

LATE = 0.25
"""Seconds. An event loop that comes round this much late has enough to do: the worker takes on nothing new."""


def tuner(most: int, workflow_tasks: int | None, local_activities: int | None, nexus_tasks: int | None) -> WorkerTuner:
    """The slots of a worker.

    Args:
        most: Activities at once. Fewer where the system allows too few open files: each call has a connection.
        workflow_tasks: At once; None for `WORKFLOW_TASKS`.
        local_activities: At once; None for Temporal's default.
        nexus_tasks: At once; None for Temporal's default.
    """
    return WorkerTuner.create_composite(
        workflow_supplier=FixedSizeSlotSupplier(workflow_tasks or WORKFLOW_TASKS),
        activity_supplier=Slots(max(1, min(most, _files(most + FILES_BESIDE) - FILES_BESIDE))),
        local_activity_supplier=FixedSizeSlotSupplier(local_activities or 100),
        nexus_supplier=FixedSizeSlotSupplier(nexus_tasks or 100),
    )


def _files(wanted: int) -> int:
    """Have the system allow the process so many open files, if it does, and return how many it allows."""
    try:
        import resource  # noqa: PLC0415, there is none on Windows, nor such a limit
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    with suppress(ValueError, OSError):
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Slots(CustomSlotSupplier):
    """Gives a slot to each activity, but none while the event loop is late.

    Args:
        most: Activities at once.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._lock = threading.Lock()  # Temporal calls from threads of its own, too
        self._loop: asyncio.AbstractEventLoop | None = None
        self._came_round = 0.0
        self._opened = asyncio.Event()

    @override
    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            _tick(ref(self))
        while (permit := self.try_reserve_slot(ctx)) is None:
            self._opened.clear()
            await self._opened.wait()
        return permit

    @override
    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        if time.monotonic() - self._came_round > TICK + LATE:
            return None
        with self._lock:
            if self._free <= 0:
                return None
            self._free -= 1
        return SlotPermit()

    @override
    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        pass

    @override
    def release_slot(self, ctx: SlotReleaseContext) -> None:
        with self._lock:
            self._free += 1
        if self._loop is not None:
            with suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._opened.set)

    def came_round(self) -> None:
        """Know that the event loop is not late."""
        self._came_round = time.monotonic()
        self._opened.set()


def _tick(slots: "ref[Slots]") -> None:
    if (living := slots()) is not None:  # its worker is not gone
        living.came_round()
        asyncio.get_running_loop().call_later(TICK, _tick, slots)
