"""Follows a run through its history: says its steps on a screen, and tells what else happens, each thing once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count

import vercel_ai_sdk as ai
from pydantic_core import to_json
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent, WorkflowExecutionStartedEventAttributes
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowQueryFailedError
from temporalio.service import RPCError

from app.output import one_line, say_error, title
from app.questions import Question
from app.runs import Handle, questions_of, result_of, unreadable
from app.screen import Screen, Step
from app.server import patiently
from bridge.watching import WATCH_AGAIN_SECONDS, watch
from bridge.wire import STOPPED, LiveText, ModelReply, ToolReply, text_of
from options.conversation import (
    ASK,
    MEMO,
    SAY,
    Outcome,
    Status,
    TurnView,
    UserMessage,
    last_text,
    view_of,
)
from workflow import AgentWorkflow
from workflow_types import AgentAnswer, AgentRequest

ENDINGS = {
    "activity_task_completed_event_attributes": ("<", "done in"),
    "activity_task_failed_event_attributes": ("x", "FAILED after"),
    "activity_task_timed_out_event_attributes": ("x", "TIMED OUT after"),
    "activity_task_canceled_event_attributes": ("x", "cancelled after"),
}
"""The end of a call: the mark of its line, and its words."""

TICK = 0.08
"""Seconds between two looks at the text of an answer so far, and between two pictures of a spinner."""


@dataclass(frozen=True)
class Before:
    """The run goes on with a conversation: its turns so far."""

    turns: list[TurnView]


@dataclass(frozen=True)
class Said:
    """A message of a person has arrived."""

    message: UserMessage


@dataclass(frozen=True)
class Replied:
    """A model call is done. The line that says so comes after this."""

    message: ai.Message


@dataclass(frozen=True)
class Asked:
    """A question has come up. With None it is no longer open."""

    key: str
    question: Question | None


@dataclass(frozen=True)
class TurnBegan:
    """A turn is under way."""

    turn: int


@dataclass(frozen=True)
class TurnOver:
    """A turn has ended."""

    turn: int
    messages: list[UserMessage]
    """Those that it has read, the question first."""
    answered: list[str]
    """Their ids."""
    outcome: Outcome
    answer: AgentAnswer
    problem: str
    """Why it failed."""
    summary: str
    """What it took."""


type Happening = Before | Said | Replied | Asked | TurnBegan | TurnOver


class Progress:
    """Follows the runs of one name.

    Args:
        client: For the server.
        workflow_id: The name.
        screen: Where to say the steps. It also has the calls under way, with the text so far.
        debug: Whether to show tracebacks.
    """

    def __init__(self, client: Client, workflow_id: str, screen: Screen, debug: bool) -> None:
        self.status = Status()
        """What the run was doing, as far as its history has been read."""
        self.run_id = ""
        """Of the run that is followed."""
        self.first_turn = 0
        """The steps of earlier turns are not said."""
        self.is_live = False
        """Whether what is read now happens now, and not before `follow()` began."""
        self._debug = debug
        self._client = client
        self._latest: Handle = client.get_workflow_handle_for(AgentWorkflow.run, workflow_id)
        self._screen = screen
        self._busy = asyncio.Event()
        self._open: dict[str, UserMessage] = {}
        """The messages that no turn has answered, by their ids."""
        self._known = set[str]()
        """The ids of all messages."""
        self._asked = set[str]()
        """The keys of the open questions."""
        self._last = AgentAnswer(text="")
        """What the model said last, in this turn."""
        self._began = self._ended = datetime.now(UTC)  # the turn
        self._calls = {"model": 0, "tool": 0}
        self._usage = ai.Usage()

    @property
    def waiting(self) -> list[UserMessage]:
        """The messages that no turn has answered."""
        return list(self._open.values())

    @property
    def summary(self) -> str:
        """What the turn has taken so far."""
        seconds = (self._ended - self._began).total_seconds()
        calls = ", ".join(f"{number:,} {kind} call{'s' * (number != 1)}" for kind, number in self._calls.items())
        return f"{calls}, {_tokens(self._usage)}, {seconds:.1f} s"

    async def follow(self, run: WorkflowExecutionDescription) -> AsyncGenerator[Happening]:
        """Read the history of a run as it grows, to its end. A run that continues as new goes on in the next one.

        Args:
            run: The run to begin with.

        Raises:
            WorkflowFailureError: The run failed, or was ended from outside.
            UserError: It cannot be read, or the server is gone for good.
            RPCError: The server refuses.
        """
        first, next_run, self.is_live = True, run.run_id, False
        while next_run:  # a run that continues as new has a history of its own for each part
            self.run_id, next_run = next_run, ""
            self._screen.steps.clear()
            handle: Handle = self._client.get_workflow_handle_for(
                AgentWorkflow.run, self._latest.id, run_id=self.run_id
            )
            # A long poll: the server answers when there is something new.
            events = handle.fetch_history_events(wait_new_event=True)
            while event := await patiently(partial(anext, events, None)):
                self.is_live = not first or event.event_id > run.history_length
                async for happening in self._read(event, first):
                    yield happening
                self._look_busy()
                next_run = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
            first = False
        self._screen.steps.clear()
        try:
            answer = await result_of(handle)
        finally:
            was_working = self.status.working
            self.status = self.status.model_copy(update={"working": False})
            self._look_busy()
        if was_working:
            stopped = answer.finish_reason == STOPPED
            yield self._turn_over(self.status.turn, list(self._open), "stopped" if stopped else "answered", answer)

    @asynccontextmanager
    async def live(self) -> AsyncIterator[None]:
        """Meanwhile, keep the calls under way up to date: their attempts, and their text."""
        parts = [asyncio.create_task(self._part(part)) for part in (self._follow_pending, self._keep_watched)]
        try:
            yield
        finally:
            for part in parts:
                part.cancel()
            await asyncio.wait(parts)

    async def _part(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except Exception as error:  # the steps are all there without it
            say_error(error, self._debug)

    # ── The history ──

    async def _read(self, event: HistoryEvent, first: bool) -> AsyncGenerator[Happening]:
        now = self._ended = event.event_time.ToDatetime(UTC)
        match event.WhichOneof("attributes"):
            case "workflow_execution_started_event_attributes":
                async for happening in self._begin(event.workflow_execution_started_event_attributes, now, first):
                    yield happening
            case "workflow_execution_signaled_event_attributes":
                signal = event.workflow_execution_signaled_event_attributes
                if signal.signal_name == SAY:
                    for said in self._said(await self._decode(signal.input.payloads[0], UserMessage)):
                        yield said
            case "workflow_execution_update_accepted_event_attributes":
                update = event.workflow_execution_update_accepted_event_attributes.accepted_request.input
                if update.name == ASK:
                    for said in self._said(await self._decode(update.args.payloads[0], UserMessage)):
                        yield said
            case "workflow_properties_modified_event_attributes":
                for changed in await self._memo_changed(event, now):
                    yield changed
            case _:
                async for reply in self._read_call(event, now):
                    yield reply

    async def _read_call(self, event: HistoryEvent, now: datetime) -> AsyncGenerator[Replied]:
        match kind := event.WhichOneof("attributes"):
            case "activity_task_scheduled_event_attributes":
                scheduled = event.activity_task_scheduled_event_attributes
                summary = await self._decode(event.user_metadata.summary, str)
                of_model = scheduled.activity_type.name == "llm_stream_activity"
                self._screen.steps[event.event_id] = Step(scheduled.activity_id, summary, of_model, since=now)
                self._say(">", summary)
            case "activity_task_started_event_attributes":
                began = event.activity_task_started_event_attributes
                self._screen.steps[began.scheduled_event_id].attempt = began.attempt
            case kind if kind in ENDINGS:
                step = self._screen.steps.pop(getattr(event, kind).scheduled_event_id)
                self._calls["model" if step.of_model else "tool"] += 1
                attempts = f", attempt {step.attempt}" if step.attempt > 1 else ""
                mark, ended = ENDINGS[kind]
                reply, result = await self._result(event, step)
                if reply is not None:
                    yield Replied(reply.message)
                if reply is not None and reply.finish_reason == STOPPED:
                    mark, ended = "x", "stopped after"
                seconds = (now - step.since).total_seconds()
                self._say(mark, f"{step.summary} {ended} {seconds:.1f} s{attempts}{result}")

    async def _memo_changed(self, event: HistoryEvent, now: datetime) -> list[TurnBegan | TurnOver | Asked]:
        changed = event.workflow_properties_modified_event_attributes.upserted_memo.fields
        over: list[TurnBegan | TurnOver | Asked] = []
        if MEMO in changed:
            over += await self._take_status(changed[MEMO], now)
        if self.status.turn >= self.first_turn:
            over += [asked for key in changed if key != MEMO for asked in await self._asked_now(key)]
        return over

    def _say(self, mark: str, text: str) -> None:
        if self.status.turn >= self.first_turn:
            self._screen.say(mark, text)

    async def _begin(
        self, started: WorkflowExecutionStartedEventAttributes, now: datetime, first: bool
    ) -> AsyncGenerator[Happening]:
        """What a run begins with. `first`: the runs that it continues were not read."""
        request = await self._decode(started.input.payloads[0], AgentRequest)
        waiting, turns = list[UserMessage](), list[TurnView]()
        if request.conversation is not None:
            said = view_of(request.conversation)
            turns = [turn for turn in said.turns if turn.outcome is not None]
            self._known.update(message.id for turn in turns for message in turn.messages)
            under_way = [message for turn in said.turns if turn.outcome is None for message in turn.messages]
            waiting = [UserMessage(id=message.id, text=text_of(message)) for message in under_way] + said.waiting
        if request.query:
            waiting.append(UserMessage(id=request.query_id or started.first_execution_run_id, text=request.query))
        if first:
            self._began, self._calls, self._usage = now, {"model": 0, "tool": 0}, ai.Usage()
            self._last = AgentAnswer(text=last_text(turns[-1].messages) if turns else "")
            yield Before(turns)
        if MEMO in started.memo.fields and not first:
            for over in await self._take_status(started.memo.fields[MEMO], now):
                yield over
        elif MEMO in started.memo.fields:
            self.status = await self._decode(started.memo.fields[MEMO], Status)
            if turns and self.status.answered and not self.status.working:
                yield self._over_by(self.status, self.status.turn)
        if carried := request.carried:
            self._calls = {"model": carried.calls, "tool": len(carried.checkpoint.tools)}
            self._usage = carried.usage or ai.Usage()
        for message in waiting:
            for happening in self._said(message):
                yield happening
        if self.status.working:
            yield TurnBegan(self.status.turn)

    def _said(self, message: UserMessage) -> list[Said]:
        if message.id in self._known:
            return []
        self._known.add(message.id)
        self._open[message.id] = message
        return [Said(message)]

    async def _take_status(self, payload: Payload, now: datetime) -> list[TurnBegan | TurnOver]:
        before, self.status = self.status, await self._decode(payload, Status)
        status, over = self.status, list[TurnBegan | TurnOver]()
        if before.working and before.turn == status.turn - status.working and status.answered:
            over = [self._over_by(status, before.turn)]
        if status.working and status.turn > before.turn:
            self._began, self._calls, self._usage = now, {"model": 0, "tool": 0}, ai.Usage()
            self._last = AgentAnswer(text="")
            over.append(TurnBegan(status.turn))
        return over

    def _over_by(self, status: Status, turn: int) -> TurnOver:
        reason = STOPPED if status.outcome == "stopped" else self._last.finish_reason
        answer = self._last.model_copy(update={"finish_reason": reason})
        return self._turn_over(turn, status.answered, status.outcome, answer, status.problem)

    def _turn_over(
        self, turn: int, ids: list[str], outcome: Outcome, answer: AgentAnswer, problem: str = ""
    ) -> TurnOver:
        messages = [self._open.pop(id) for id in ids if id in self._open]
        return TurnOver(turn, messages, ids, outcome, answer, problem, self.summary)

    async def _result(self, event: HistoryEvent, step: Step) -> tuple[ModelReply | None, str]:
        """The reply of a model, and the result of a call in short."""
        if event.HasField("activity_task_failed_event_attributes"):
            failure = event.activity_task_failed_event_attributes.failure
            return None, f": {await self._decode_failure(failure)}"
        if not event.HasField("activity_task_completed_event_attributes"):
            return None, ""
        payload = event.activity_task_completed_event_attributes.result.payloads[0]
        if not step.of_model:
            return None, f": {title(to_json((await self._decode(payload, ToolReply)).result).decode(), 120)}"
        reply = await self._decode(payload, ModelReply)
        self._last = AgentAnswer(text=text_of(reply.message), finish_reason=reply.finish_reason)
        usage = reply.message.usage
        self._usage += usage or ai.Usage()
        return reply, f": {_tokens(usage)}" if usage else ""

    async def _decode[T](self, payload: Payload, type: type[T]) -> T:
        try:
            value: T = (await self._client.data_converter.decode([payload], [type]))[0]
        except Exception as error:  # any error of a data converter
            raise unreadable(error) from error
        return value

    async def _decode_failure(self, failure: Failure) -> str:
        try:
            return one_line(await self._client.data_converter.decode_failure(failure))
        except Exception as error:
            raise unreadable(error) from error

    # ── Questions ──

    async def open_questions(self) -> dict[str, Question]:
        """The questions that nobody has answered yet."""
        return await questions_of(await patiently(self._latest.describe))

    async def _asked_now(self, key: str) -> list[Asked]:
        # The history tells of every question that came or went; the description knows which are open.
        question = (await self.open_questions()).get(key)
        if question is not None:
            self._asked.add(key)
        elif key not in self._asked:
            return []
        else:
            self._asked.discard(key)
        return [Asked(key, question)]

    # ── The calls under way ──

    def _look_busy(self) -> None:
        if self._screen.steps or self.status.working:
            self._busy.set()
        else:
            self._busy.clear()

    async def _follow_pending(self) -> None:
        # Attempts, and the text of an answer that is not whole yet, are not in the history, only in the description.
        for tick in count():
            await self._busy.wait()
            await asyncio.sleep(TICK)
            is_live = self._has_text_to_show()
            if self._screen.steps and (is_live or tick % 5 == 0):  # there is less to tell of the rest
                with suppress(RPCError):  # the server is lost, which the reading of the history says
                    await self._show_pending()
            self._screen.refresh()

    def _has_text_to_show(self) -> bool:
        return self._screen.shows_text and any(step.of_model for step in self._screen.steps.values())

    async def _keep_watched(self) -> None:
        while True:
            seconds = TICK
            await self._busy.wait()
            if self._has_text_to_show():
                with suppress(RPCError, WorkflowQueryFailedError):  # no worker: then there is no text either
                    await watch(self._latest)
                    seconds = WATCH_AGAIN_SECONDS
            await asyncio.sleep(seconds)

    async def _show_pending(self) -> None:
        description = await self._latest.describe()
        steps = {step.activity_id: step for step in self._screen.steps.values()}
        for pending in description.raw_description.pending_activities:
            if not (step := steps.get(pending.activity_id)):
                continue
            said: tuple[tuple[str, str], ...] = ()
            if step.of_model and pending.heartbeat_details.payloads:
                live = await self._decode(pending.heartbeat_details.payloads[0], LiveText)
                if live.attempt == pending.attempt:  # or it is the text of one that failed
                    said = (live.reasoning, "dim italic"), ("…" * bool(live.start) + live.text, "none")
            step.said = said
            if pending.attempt > step.attempt and self._screen.is_free:
                step.attempt = pending.attempt
                wait = (pending.next_attempt_schedule_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()
                when = f"in {wait:.0f} s" if wait > 0.5 else "now"  # it is in the past if there is none
                failure = await self._decode_failure(pending.last_failure)
                self._screen.say("!", f"{step.summary}: attempt {step.attempt - 1} failed: {failure}; next one {when}")


def _tokens(usage: ai.Usage) -> str:
    return f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
