"""Heartbeats in the background: the sign of life of an activity, and the text of an answer while it comes.

Heartbeats cost no history. The server has the latest one of each activity, for everybody to read.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import vercel_ai_sdk as ai
from temporalio import activity

from bridge.wire import LiveText, encodable, text_of

COLLECT_SECONDS = 0.05
"""How long to collect text before a heartbeat sends it. The worker sends heartbeats on no more often than its
`max_heartbeat_throttle_interval` says."""

LIVE_LIMIT = 20_000
"""Characters. Each heartbeat sends the whole text again, so only its end."""


@asynccontextmanager
async def heartbeats() -> AsyncGenerator["Live"]:
    """Heartbeat while the body runs, also while it only waits: it is how the server knows that the worker lives."""
    live = Live()
    # Also where the activity has no heartbeat timeout: the answer to a heartbeat tells that the activity is cancelled.
    seconds = (activity.info().heartbeat_timeout or timedelta(minutes=1)).total_seconds() / 3

    async def beat() -> None:
        while True:
            try:
                await asyncio.wait_for(live.changed.wait(), seconds)
            except TimeoutError:
                pass  # nothing new: a plain sign of life
            else:
                await asyncio.sleep(COLLECT_SECONDS)  # an activity that is done by then needs no heartbeat
            live.changed.clear()
            activity.heartbeat(*live.details())

    task = asyncio.create_task(beat())
    try:
        yield live
    finally:
        task.cancel()


class Live:
    """The details of an activity's heartbeats."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._message: ai.Message | None = None

    def show(self, message: ai.Message) -> None:
        self._message = message
        self.changed.set()

    def details(self) -> list[LiveText]:
        if self._message is None:
            return []
        text = text_of(self._message)
        reasoning = "".join(part.text for part in self._message.parts if isinstance(part, ai.ReasoningPart))
        live = LiveText(
            attempt=activity.info().attempt,
            text=encodable(text[-LIVE_LIMIT:]),
            reasoning=encodable(reasoning[-LIVE_LIMIT:]),
            start=max(0, len(text) - LIVE_LIMIT),
        )
        return [live]
