"""Heartbeats in the background: the sign of life of an activity, and the text of an answer while somebody watches.

Heartbeats cost no history. The server has the latest one of each activity, for everybody to read.

A thread sends them, not the event loop of the activities. With a thousand activities the loop may take seconds to come
round. A heartbeat that waited for it would be late, the server would take the worker for dead, and every call would be
made and paid for again.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from typing import Any

import vercel_ai_sdk as ai
from temporalio import activity
from temporalio.activity import _Context  # private: leads to the worker of an activity
from temporalio.bridge.proto import ActivityHeartbeat
from temporalio.worker import ActivityOutboundInterceptor

from bridge.transcript import is_cached
from bridge.watching import WATCH_AGAIN_SECONDS, ask_elsewhere, is_hurried, is_watched, noisy_runs
from bridge.wire import LiveText, encodable, text_of

BEATS_PER_TIMEOUT = 4
"""Heartbeats in each heartbeat timeout: three may be late or lost."""

TICK = 0.1
"""Seconds between two looks at what is due. Live text is sent as often."""

STUCK_SECONDS = 60.0
"""An event loop that has not come round for so long is taken for stuck, and its activities for dead."""

ASK_LOOPS_SECONDS = 1.0
"""How often to have the event loops come round. Each time, a loop that only waits is woken."""

LIVE_LIMIT = 20_000
"""Characters. Each heartbeat sends the whole text again, so only its end."""


@contextmanager
def heartbeats() -> Iterator["Live"]:
    """Heartbeat while the body runs, also while it only waits: it is how the server knows that the worker lives."""
    live = Live()
    _live.set(live)  # until the end of the activity, which has a context of its own
    _pulse.add(live)
    try:
        yield live
    finally:
        _pulse.remove(live)


class Live:
    """An activity under way: when its next heartbeat is due, and what it says."""

    def __init__(self) -> None:
        self._info = activity.info()
        # Also where the activity has no heartbeat timeout: the answer to a heartbeat tells that it is cancelled.
        timeout = self._info.heartbeat_timeout or timedelta(minutes=1)
        self._every = timeout.total_seconds() / BEATS_PER_TIMEOUT
        self._workflow_id = self._info.workflow_id or ""
        # The server counts from when it handed the activity out. A busy event loop may have begun it seconds later.
        waited = (datetime.now(UTC) - self._info.started_time).total_seconds()
        self._due = time.monotonic() + self._every - max(waited, 0)
        self._ask_at = 0.0
        self._send = _sender()
        self._heartbeat = ActivityHeartbeat(task_token=self._info.task_token)
        self._message: ai.Message | None = None
        self._is_news = False  # not in the heartbeats yet
        self._task: asyncio.Task[None] | None = None
        self._context = copy_context()  # in which `activity.info()` is that of this activity
        self.loop = asyncio.get_running_loop()

    def show(self, message: ai.Message) -> None:
        """Have whoever watches see this message so far."""
        self._message, self._is_news = message, True

    @property
    def text(self) -> str:
        """The text of this message."""
        return text_of(self._message) if self._message else ""

    def has_to_tick(self, now: float, noisy: set[str]) -> bool:
        """In the thread: whether there may be something to send.

        Args:
            now: By the monotonic clock.
            noisy: The ids of the workflows that are watched or hurried.
        """
        return now >= self._due or (self._is_news and now >= self._ask_at) or self._workflow_id in noisy

    def tick(self, now: float) -> None:
        """In the thread: send what is due."""
        watched = is_watched(self._workflow_id)
        if self._is_news and (self._task is None or self._task.done()):
            if watched:
                self._is_news = False
                self._start(self._send_text)
            elif now >= self._ask_at:
                self._ask_at = now + WATCH_AGAIN_SECONDS
                if not is_cached(self._info.workflow_run_id or ""):
                    self._start(ask_elsewhere)
        if now >= self._due or is_hurried(self._workflow_id):
            if not watched:
                del self._heartbeat.details[:]
                self._is_news = self._message is not None  # to the next one who watches
            self._beat()

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _beat(self) -> None:
        self._due = time.monotonic() + self._every
        with suppress(Exception):  # the activity is over meanwhile, or its worker
            self._send(self._heartbeat)

    def _start(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        def start() -> None:
            self._task = self.loop.create_task(job())
            self._task.add_done_callback(_log_failure)

        self.loop.call_soon_threadsafe(start, context=self._context)

    async def _send_text(self) -> None:
        message = self._message
        assert message is not None
        text = text_of(message)
        reasoning = "".join(part.text for part in message.parts if isinstance(part, ai.ReasoningPart))
        live = LiveText(
            attempt=self._info.attempt,
            text=encodable(text[-LIVE_LIMIT:]),
            reasoning=encodable(reasoning[-LIVE_LIMIT:]),
            start=max(0, len(text) - LIVE_LIMIT),
        )
        details = await activity.client().data_converter.encode([live])
        del self._heartbeat.details[:]
        self._heartbeat.details.extend(details)
        self._beat()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logging.getLogger(__name__).info("the text of an answer so far could not be shown: %s", error)


def _sender() -> Callable[[ActivityHeartbeat], None]:
    """What hands a heartbeat of this activity to its worker, from any thread.

    Temporal's `activity.heartbeat()` is no such thing: it makes a task of the event loop.
    """
    outbound = getattr(_Context.current().heartbeat, "__self__", None)  # private: the way to the worker
    while isinstance(outbound, ActivityOutboundInterceptor) and hasattr(outbound, "next"):
        outbound = outbound.next
    if (worker := getattr(outbound, "_worker", None)) is None:  # in an `ActivityEnvironment`, for tests of activities
        return lambda heartbeat: None
    send: Callable[[ActivityHeartbeat], None] = worker._bridge_worker().record_activity_heartbeat  # private: of Core
    return send


class _Pulse:
    """The thread that ticks for all activities of the process."""

    def __init__(self) -> None:
        self._lives: set[Live] = set()
        self._seen: dict[asyncio.AbstractEventLoop, float] = {}
        """When each event loop last came round, by the monotonic clock."""
        self._any = threading.Event()
        self._lock = threading.Lock()
        self._started = False

    def __len__(self) -> int:
        return len(self._lives)

    def add(self, live: Live) -> None:
        with self._lock:
            self._lives.add(live)
            self._any.set()
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="heartbeats", daemon=True).start()

    def remove(self, live: Live) -> None:
        live.end()
        with self._lock:
            self._lives.discard(live)
            if not self._lives:
                self._any.clear()
                self._seen.clear()

    def _run(self) -> None:
        asked = 0.0
        while True:
            self._any.wait()
            with self._lock:
                lives = list(self._lives)
            now = time.monotonic()
            if now - asked > ASK_LOOPS_SECONDS:
                asked = now
                for loop in {live.loop for live in lives}:
                    with suppress(RuntimeError):  # it is closed
                        loop.call_soon_threadsafe(self._came_round, loop)
            noisy = noisy_runs()
            for live in lives:
                if live.has_to_tick(now, noisy):
                    with self._lock:  # an activity that ends meanwhile must send no other heartbeat
                        due = live in self._lives and now - self._seen.setdefault(live.loop, now) < STUCK_SECONDS
                        if due and not live.loop.is_closed():
                            live.tick(now)
            time.sleep(TICK)

    def _came_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._seen[loop] = time.monotonic()


_pulse = _Pulse()

_live: ContextVar[Live] = ContextVar("live")
"""The one of the current activity."""


def show(message: ai.Message) -> None:
    """In an activity that heartbeats: have whoever watches see this message so far."""
    if live := _live.get(None):
        live.show(message)


def calls_under_way() -> int:
    """How many activities of this process heartbeat."""
    return len(_pulse)
