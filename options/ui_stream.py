"""Conversations live, as the AI SDK's UI message stream (see options/ui_messages.py).

    chunks = turn_stream(client, "trip", turn=1, message="m1")  # the turn that reads this message
    return StreamingResponse(server_sent_events(chunks), headers=UI_MESSAGE_STREAM_HEADERS)

The stream is made of looks at the conversation: its description, which also has the text of an answer so far
(`LiveText` of bridge/wire.py), and its messages when the history has grown. Nothing is kept between the looks but what
the client has. So a stream that begins in the middle of an answer has all of it at once, and one that goes on through a
lost worker, a lost server or a run that continues as new has nothing twice.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
)
from temporalio.service import RPCError, RPCStatusCode
from vercel_ai_sdk.ai_sdk_ui import protocol

from bridge.failures import one_line
from bridge.heartbeats import LIVE_LIMIT
from bridge.watching import WATCH_AGAIN_SECONDS, watch
from bridge.wire import LiveText
from options.approvals import open_questions
from options.conversation import ConversationView, Status, TurnView, UserMessage
from options.conversation_client import Handle, status_of, view
from options.ui_messages import (
    Called,
    Chunk,
    Part,
    Sent,
    live_parts,
    message_id,
    metadata_of,
    parts_of,
    question_of,
    sse,
)

LIVE_SECONDS = 0.1
"""Between two looks while a model call is under way: the worker sends its text as often."""

BUSY_SECONDS = 0.25
"""Between two looks while other things are."""

IDLE_SECONDS = 1.0
"""Between two looks while nothing is, for what other processes do. What this one does is told by `wake()`."""

LOOK_SECONDS = 2.0
"""For one look. The client library would try for longer before it tells of a lost server."""

JOIN_SECONDS = 1.0
"""For how long to wait for the text of a model call that may not have said anything yet."""

PING_SECONDS = 10.0
"""Of silence, after which a comment is sent. Who hears nothing for longer, a client or a proxy, has lost the stream."""

PATIENCE = 5.0
"""Seconds without a sign of life, a heartbeat say, until people are told that there may be no worker. Longer than a
quarter of the heartbeat timeout, which is how often they come."""

NO_WORKER = "Waiting for a worker…"
NO_SERVER = "The Temporal server cannot be reached. Waiting for it…"

PASSING = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.UNKNOWN,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.RESOURCE_EXHAUSTED,
    RPCStatusCode.ABORTED,
    RPCStatusCode.INTERNAL,
)


class MessageForgotten(Exception):
    """The conversation does not have this message, or not any more."""


_sleepers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
"""The streams of this process, by workflow id."""


def wake(workflow_id: str) -> None:
    """Have the streams of a conversation look at once: something was sent to it."""
    for sleeper in _sleepers.get(workflow_id, ()):
        sleeper.set()


# ── Streams ──────────────────────────────────────────────────────────────────────────────────────────────


async def turn_stream(
    client: Client, workflow_id: str, *, turn: int, message: str | None = None, has: Sequence[Part] = ()
) -> AsyncGenerator[Chunk]:
    """One turn, until it is over or waits for a person and nothing else. Then the client, as the npm package has it,
    sends what the person says, and gets another stream.

    Args:
        client: With the plugin `DurableAgents`.
        workflow_id: The name of the conversation.
        turn: Its number, or, with a message, that of one which is not after it: the one under way when it was sent.
        message: The id of a message, if the turn that reads it is wanted, whichever that is.
        has: What the client has of the turn, which is left out.

    Raises:
        MessageForgotten: There is no such message.
        RPCError: The server refuses.
    """
    looks = _Looks(client, workflow_id, turn)
    stream = _TurnStream(has)
    async with aclosing(looks.each()) as each:
        async for look in each:
            for chunk in stream.notice(look):
                yield chunk
            if not look.is_read or any(waiting.id == message for waiting in look.waiting):
                continue
            if (found := look.turn_of(message, turn)) is not None:
                looks.first = found.number
                for chunk in stream.become(found, look):
                    yield chunk
                if stream.is_over or look.waits_for_a_person(stream.sent.parts):
                    for chunk in stream.end(found):
                        yield chunk
                    return
            elif looks.first == 0:
                raise MessageForgotten("the conversation does not have this message, or not any more")
            else:
                looks.first = 0  # it was sent long ago


async def conversation_stream(client: Client, workflow_id: str, first: int = 0) -> AsyncGenerator[Chunk]:
    """A conversation from a turn on, for as long as somebody reads: each turn with its question before it, and what
    becomes of it, whoever sends, answers or stops. It also waits for a conversation that does not exist yet.

    Before each turn, and when it changes, comes a transient chunk `data-state`: `turn`, its number; `question`, the UI
    message that began it; `working`; and `waiting`, the UI messages that no turn has read yet. Once, a transient chunk
    `data-live` says that all is sent that there was when the stream began.
    """
    looks = _Looks(client, workflow_id, first)
    turn, told, began, is_live = _TurnStream(), dict[str, object](), time.monotonic(), False
    async with aclosing(looks.each()) as each:
        async for look in each:
            for chunk in turn.notice(look):
                yield chunk
            for found in _or_none(look.turns) if look.is_read else ():
                if found is not None and turn.is_over and found.number > looks.first:
                    turn = _TurnStream(notice=look.notice)
                if (state := look.state(found)) != told:
                    told = state
                    yield protocol.DataPart("state", state, transient=True)
                if found is not None and not turn.is_over:
                    looks.first = found.number
                    for chunk in turn.become(found, look):
                        yield chunk
                    for chunk in turn.end(found) if turn.is_over else []:
                        yield chunk
            # The text of an answer comes a moment after somebody begins to watch.
            has_text = look.call is None or look.live is not None or time.monotonic() - began > JOIN_SECONDS
            if look.is_read and has_text and not is_live:
                is_live = True
                yield protocol.DataPart("live", {}, transient=True)


def _or_none(turns: list[TurnView]) -> Sequence[TurnView | None]:
    return turns or [None]


async def server_sent_events(chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[str]:
    """The body of a response, with a sign of life every `PING_SECONDS`. An error of the stream ends it as a chunk."""
    async with aclosing(chunks):
        upcoming = asyncio.ensure_future(anext(chunks))
        yield ": here\n\n"
        try:
            while True:
                if not (await asyncio.wait([upcoming], timeout=PING_SECONDS))[0]:
                    yield ": still here\n\n"
                    continue
                yield sse(upcoming.result())
                upcoming = asyncio.ensure_future(anext(chunks))
        except StopAsyncIteration:
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield sse(protocol.ErrorPart(one_line(error)))
        finally:
            upcoming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await upcoming  # or the generator could not be closed


class _TurnStream:
    """The chunks of one turn."""

    def __init__(self, has: Sequence[Part] = (), notice: str = "") -> None:
        self.sent = Sent(has)
        self.is_over = False
        self._is_begun = False
        self._notice = notice
        self._call: tuple[str, int] | None = None
        self._live = _LiveStep()

    def notice(self, look: "_Look") -> list[Chunk]:
        """What people are told besides: a transient chunk `data-notice` with a line, empty if there is nothing."""
        if look.notice == self._notice:
            return []
        self._notice = look.notice
        return [protocol.DataPart("notice", {"text": look.notice}, transient=True)]

    def become(self, turn: TurnView, look: "_Look") -> list[Chunk]:
        chunks = list[Chunk]()
        if not self._is_begun:
            self._is_begun = True
            chunks.append(
                protocol.StartPart(message_id=message_id(turn.number), message_metadata={"turn": turn.number})
            )
        self.is_over = turn.outcome is not None
        parts = parts_of(turn, look.questions if turn.outcome is None else {})
        if self._call != look.call:  # another call or attempt
            self._call, self._live = look.call, _LiveStep()
        if look.live is not None and turn.outcome is None:
            parts += self._live.parts(look.live)
        return chunks + self.sent.become(parts)

    def end(self, turn: TurnView) -> list[Chunk]:
        metadata = metadata_of(turn)
        match turn.outcome:
            case "failed":  # the client throws at an error, and reads no further
                return [protocol.MessageMetadataPart(metadata), protocol.ErrorPart(turn.problem)]
            case "stopped":
                stopped = protocol.FinishPart(finish_reason="other", message_metadata=metadata)
                return [protocol.AbortPart(), protocol.FinishStepPart(), stopped]
            case "answered":
                return [protocol.FinishStepPart(), protocol.FinishPart(message_metadata=metadata)]
        return [protocol.FinishStepPart(), protocol.FinishPart(finish_reason="tool-calls")]


class _LiveStep:
    """The text of a model call under way, put together from its heartbeats, which may have only the end of it."""

    def __init__(self) -> None:
        self._text, self._start, self._reasoning = "", 0, ""

    def parts(self, live: LiveText) -> list[Part]:
        has = self._text[live.start - self._start :] if live.start >= self._start else None
        if has is None or live.start > self._start + len(self._text) or not _one_begins_the_other(has, live.text):
            self._text, self._start = live.text, live.start  # another attempt, or the first words that are seen
        else:
            self._text += live.text[len(has) :]
        if len(live.reasoning) < LIVE_LIMIT or not self._reasoning:  # else it is cut off, and waits for the whole
            self._reasoning = live.reasoning
        return live_parts(self._reasoning, "…" * bool(self._start) + self._text)


def _one_begins_the_other(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


# ── Looks ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Look:
    """A conversation at one moment."""

    is_read: bool = False
    """Whether there was a worker to tell the messages, or there is no conversation."""
    turns: list[TurnView] = field(default_factory=list)
    waiting: list[UserMessage] = field(default_factory=list)
    status: Status = field(default_factory=lambda: Status(turn=0, working=False))
    questions: dict[str, str] = field(default_factory=dict)
    call: tuple[str, int] | None = None
    """The model call that is under way, and not among the messages yet, and which attempt it is."""
    live: LiveText | None = None
    """Its text so far."""
    calls: int = 0
    """How many calls are under way."""
    notice: str = ""

    def turn_of(self, message: str | None, number: int) -> TurnView | None:
        """The turn that has read a message, or the one of this number."""
        for turn in reversed(self.turns):
            has_read = any(said.role == "user" and said.id == message for said in turn.messages)
            if has_read or (message is None and turn.number == number):
                return turn
        return None

    def waits_for_a_person(self, parts: Sequence[Part]) -> bool:
        """Whether the turn under way needs an answer to go on, and has nothing else to do."""
        asked = any(isinstance(part, Called) and part.state == "approval-requested" for part in parts)
        return asked and not self.calls

    def state(self, turn: TurnView | None) -> dict[str, object]:
        waiting = [{"id": message.id, "text": message.text} for message in self.waiting]
        question = question_of(turn).plain() if turn else None
        working = turn.outcome is None if turn else self.status.working
        return {"turn": turn.number if turn else 0, "question": question, "working": working, "waiting": waiting}


class _Looks:
    """Looks at a conversation, one after the other, for as long as somebody wants them."""

    def __init__(self, client: Client, workflow_id: str, first: int) -> None:
        self.first = first
        """The turns before this one are left out."""
        self._client = client
        self._handle: Handle = client.get_workflow_handle(workflow_id)
        self._view = ConversationView(turns=[], waiting=[])
        self._read_at: tuple[object, int] | None = None
        """At which point of the history this was read, and from which turn on."""
        self._reading: asyncio.Task[ConversationView] | None = None
        self._reading_at: tuple[object, int] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._watch_at = self._changed_at = 0.0
        self._signs: object = None

    async def each(self) -> AsyncGenerator[_Look]:
        look, sleeper = _Look(), asyncio.Event()
        _sleepers[self._handle.id].add(sleeper)
        try:
            while True:
                sleeper.clear()
                try:
                    look = await self._look(look)
                except (RPCError, TimeoutError) as error:
                    if isinstance(error, RPCError) and error.status not in PASSING:
                        raise
                    look = replace(look, notice=NO_SERVER)
                yield look
                seconds = LIVE_SECONDS if look.call or self._reading else BUSY_SECONDS
                if look.notice == NO_SERVER or (look.is_read and not look.status.working):
                    seconds = IDLE_SECONDS
                with suppress(TimeoutError):
                    await asyncio.wait_for(sleeper.wait(), seconds)
        finally:
            _sleepers[self._handle.id].discard(sleeper)
            if not _sleepers[self._handle.id]:
                del _sleepers[self._handle.id]
            for task in (self._reading, self._watching):
                if task is not None:
                    task.cancel()

    async def _look(self, last: _Look) -> _Look:
        tries = 0
        while (description := await self._described()) is not None:
            point = description.run_id, description.history_length
            is_settled = self._read_at is not None and self._read_at[0] == point and self._read_at[1] <= self.first
            if is_settled or tries == 3:  # something new comes all the time
                return await self._composed(description, is_settled)
            if not await self._read(point):
                return replace(last, notice=await self._notice(description) or NO_WORKER)
            tries += 1
            # What is under way has to be as of the messages, or an answer would be there twice: so another look.
        return _Look(is_read=True)

    async def _described(self) -> WorkflowExecutionDescription | None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await self._handle.describe()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return None

    async def _read(self, point: object) -> bool:
        """Read the messages. Returns whether that is done: a worker has to answer, and perhaps to replay the run."""
        if self._reading is None:
            self._reading_at = point, self.first
            self._reading = asyncio.create_task(view(self._handle, self.first))
        if not (await asyncio.wait([self._reading], timeout=LOOK_SECONDS))[0]:
            return False
        task, self._reading = self._reading, None
        try:
            self._view = task.result()
        except RPCError as error:
            if error.status not in PASSING:
                raise
            return False
        self._read_at = self._reading_at
        return True

    async def _composed(self, description: WorkflowExecutionDescription, settled: bool) -> _Look:
        turns, status = self._view.turns, await status_of(description)
        if description.status != WorkflowExecutionStatus.RUNNING and turns and turns[-1].outcome is None:
            how = description.status.name.lower().replace("_", " ") if description.status else "over"
            over = turns[-1].model_copy(update={"outcome": "failed", "problem": f"the run was ended: {how}"})
            turns = [*turns[:-1], over]
        pending = list(description.raw_description.pending_activities)
        model = next((call for call in pending if call.activity_type.name == "llm_stream_activity"), None)
        look = _Look(
            is_read=True,
            turns=turns,
            waiting=self._view.waiting,
            status=status,
            questions=open_questions(await description.memo()),
            calls=len(pending) if settled else 1,
            call=(model.activity_id, model.attempt) if model is not None and settled else None,
            live=await self._live_text(model) if model is not None and settled else None,
        )
        if model is not None and self._watch_at < time.monotonic():
            self._watch_at = time.monotonic() + WATCH_AGAIN_SECONDS
            self._watching = asyncio.create_task(self._watch())
        return replace(look, notice=await self._notice(description, look.live))

    async def _live_text(self, call: PendingActivityInfo) -> LiveText | None:
        if not call.heartbeat_details.payloads:
            return None
        [live] = await self._client.data_converter.decode(call.heartbeat_details.payloads[:1], [LiveText])
        # Or it is the text of an attempt that failed.
        return live if isinstance(live, LiveText) and live.attempt == call.attempt else None

    async def _watch(self) -> None:
        with suppress(RPCError, WorkflowQueryFailedError):  # no worker: then there is no text either
            await watch(self._handle)

    async def _notice(self, description: WorkflowExecutionDescription, live: LiveText | None = None) -> str:
        """What holds the conversation up."""
        raw, now = description.raw_description, time.monotonic()
        calls = [call for call in raw.pending_activities if not _is_backing_off(call)]
        signs = [
            (call.activity_id, call.attempt, call.state, call.last_heartbeat_time.ToNanoseconds()) for call in calls
        ]
        has_task = raw.HasField("pending_workflow_task")
        task = (raw.pending_workflow_task.attempt, raw.pending_workflow_task.state) if has_task else None
        if self._signs != (signs, task, description.history_length):
            self._signs, self._changed_at = (signs, task, description.history_length), now
        patience = max([PATIENCE, *(call.activity_options.heartbeat_timeout.seconds * 0.6 for call in calls)])
        if (calls or has_task) and now - self._changed_at > patience:
            return NO_WORKER
        for call in raw.pending_activities:
            if call.attempt > 1 and call.HasField("last_failure") and live is None:
                if call.last_failure.HasField("timeout_failure_info"):  # mostly of a worker that is gone
                    return NO_WORKER
                failure = await self._client.data_converter.decode_failure(call.last_failure)
                return f"A call failed, and is made again (attempt {call.attempt}): {one_line(failure)}"
        return ""


def _is_backing_off(call: PendingActivityInfo) -> bool:
    return (
        call.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
        and call.next_attempt_schedule_time.ToNanoseconds() > time.time_ns()
    )
