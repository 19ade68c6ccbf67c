"""Conversations: follow-ups, messages that steer the agent while it works, and a stop that keeps all that was said.

    @workflow.init
    def __init__(self, request: ConversationRequest) -> None:
        self._conversation = Conversation(request, stay_open=True)

    @workflow.run
    async def run(self, request: ConversationRequest) -> str:
        while turn := await self._conversation.next_turn():
            llm = ConversingModel("provider/model", turn)
            async with turn:
                earlier = await turn.earlier()
                async for message in ai.run(agent, llm, turn.question, earlier, checkpoint=llm.checkpoint):
                    turn.text = text_of(message)

A turn is one call of `ai.run()`: the loop is given the messages so far, and answers one more. While the conversation
waits for a message, no process runs, no timer, and nothing is written to the history.

Messages are Temporal signals. A signal is safe from the moment that the server has it, also while no worker runs. An
update is safe only when a worker has accepted it. For the side of the client see options/conversation_client.py.
"""

import asyncio
import base64
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Literal, Self, Unpack, override

import pydantic
import vercel_ai_sdk as ai
from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

from bridge.details import shortened
from bridge.failures import failure_of, reason_of
from bridge.transcript import run_transcript
from bridge.watching import hurry
from bridge.wire import PAYLOAD_LIMIT, WireMessage, text_of
from durable import IDLE_TIMEOUT
from options.continuing import CARRIED_LIMIT, Carried, ContinuingModel, continue_as_new, fits, is_long, packed

SAY = "say"
"""Name of the signal that brings a message: a `UserMessage`."""

STOP = "stop_turn"
"""Name of the signal that ends a turn at once. Its argument is the number of the turn."""

END = "end_conversation"
"""Name of the signal that ends the conversation, when all its messages are answered."""

ASK = "ask"
"""Name of the update that brings a message, and returns its `TurnResult`. Send it with the message's id as its own."""

CONTINUED = "ContinuedAsNew"
"""The type of the error of such an update, when the run continues as new, or is cancelled, before there is an answer:
send it again."""

CONVERSATION_QUERY = "conversation"
"""Name of the query that gives a `ConversationView`. Its argument is the number of the first turn that is wanted."""

STATE_QUERY = "conversation_state"
"""Name of the query that gives a `ConversationState`, to go on from a run that has failed or was ended from outside.
None if that is too long."""

MEMO = "conversation"
"""The key of a run's memo under which its `Status` is. Where there is none, it is the one of a first turn."""

PROBLEM_BYTES = 1000
"""Longest problem in a status, since the server limits the size of a run's memo."""

REMEMBERED_IDS = 1000
"""How many ids of messages a conversation remembers, to see that a message was sent twice."""


class UserMessage(pydantic.BaseModel):
    """Argument of the signal `SAY` and the update `ASK`."""

    id: str
    """Chosen by the sender. A message that is sent twice with one id counts once."""
    text: str = pydantic.Field(min_length=1)
    steers: int | None = None
    """The turn that the sender saw under way, if any. The message is read in this turn, before its next model call. If
    there is no such call any more, or no such turn, the message gets a turn of its own."""


type Outcome = Literal["answered", "stopped", "failed"]


class TurnResult(pydantic.BaseModel):
    """How a turn ended."""

    outcome: Outcome
    text: str = ""
    """The answer. Of a turn that was stopped, as far as it came."""
    problem: str = ""
    """Why it failed."""


class Status(pydantic.BaseModel):
    """What a conversation is doing: in the run's memo, so that reading it needs no worker."""

    turn: int = 1
    """The number of the current turn, or of the latest one. They are counted from 1 over the whole conversation."""
    working: bool = True
    """Whether the turn is under way. Otherwise the conversation waits for a message."""
    answered: list[str] = []
    """The ids of the messages that the turn which ended last has read."""
    outcome: Outcome = "answered"
    """How that turn ended."""
    problem: str = ""
    """Why it failed."""


class TurnView(pydantic.BaseModel):
    """The messages of one turn: the question first, then what the model said, with the results of its tool calls, and
    the messages that steered it, where they were read."""

    number: int
    """0 for what a `Shorten` has put in the place of earlier turns."""
    messages: list[WireMessage]
    outcome: Outcome | None
    """None while the turn is under way."""
    problem: str = ""

    def has_read(self, id: str) -> bool:
        """Whether a message with this id was sent to the turn."""
        return any(message.id == id and message.role == "user" for message in self.messages)

    @property
    def result(self) -> TurnResult:
        """The result of a turn that is over."""
        return TurnResult(outcome=self.outcome or "answered", text=last_text(self.messages), problem=self.problem)


class ConversationView(pydantic.BaseModel):
    """Answer of the query `CONVERSATION_QUERY`."""

    turns: list[TurnView]
    """From the wanted one on. The first of them are left out if an answer cannot hold them all. Of a turn that is too
    long by itself, messages after the question are left out."""
    waiting: list[UserMessage]
    """Messages that no turn has read yet."""


class ConversationState(pydantic.BaseModel):
    """A conversation, as it is in the input and the result of a workflow."""

    turns: int
    state: str
    """JSON, compressed, in base64."""


type Shorten = Callable[[list[ai.Message]], Awaitable[list[ai.Message]]]
"""Shortens the messages so far, before a turn. It is awaited in the workflow: no clock, no randomness, no I/O but by
model and tool calls. The conversation goes on with what it returns. That has to begin with a message of the user, or
some models refuse it. It may return the list that it was given. See options/shortening.py."""

# ── In the workflow ──────────────────────────────────────────────────────────────────────────────────────


class ConversationRequest(pydantic.BaseModel):
    """The workflow's input, or the base class of it."""

    query: str = ""
    """The first message. Empty if all messages come as signals."""
    query_id: str = ""
    """The id of that message. Empty if nobody refers to it."""
    conversation: ConversationState | None = None
    """What was said in an earlier run, if this one goes on from there."""
    carried: Carried | None = None
    """The state of the run before, if this one continues it as new."""


class _Steering(pydantic.BaseModel):
    """A message that was read in the middle of a turn."""

    after: int
    """How many messages of the model in this turn are before it."""
    message: UserMessage


class _State(pydantic.BaseModel):
    """All of a conversation that the next run has to know."""

    turn: int = 0
    messages: list[WireMessage] = []
    """Of the turns that are over."""
    questions: dict[str, int] = {}
    """The turn that each question among these messages has begun, by the question's id."""
    unanswered: dict[int, TurnResult] = {}
    """The turns that were stopped or failed."""
    current: UserMessage | None = None
    """The question of the turn under way."""
    steering: list[_Steering] = []
    """What this turn has read since."""
    waiting: list[UserMessage] = []
    """What no turn has read yet."""
    seen: list[str] = []
    ended: bool = False

    def take_in(self, ids: list[str], messages: list[ai.Message]) -> None:
        """The turn under way is over."""
        self.messages += messages
        self.questions[ids[0]] = self.turn
        self.current = None


class Conversation:
    """The turns of a workflow run. Make it in the workflow's `@workflow.init`: an update may come with the first task.

    Args:
        request: The workflow's input.
        stay_open: Whether to wait for messages, until the signal `END`. Otherwise the run ends when every message that
            it has is answered. The next message then has to start another run, which goes on from this one.
        idle_limit: For how long to wait. It takes a durable timer; without a limit there is none.
        shorten: Awaited with the messages so far before each turn but the first.
    """

    def __init__(
        self,
        request: ConversationRequest,
        *,
        stay_open: bool = False,
        idle_limit: timedelta | None = None,
        shorten: Shorten | None = None,
    ) -> None:
        self.request = request
        """What the run continues as new with."""
        self.shorten = shorten
        self._stay_open, self._idle_limit = stay_open, idle_limit
        self._state = _unpacked(request.conversation) if request.conversation else _State()
        self._turn: Turn | None = None
        self._over: Status = workflow.memo_value(MEMO, Status(), type_hint=Status)
        """How the latest turn ended, which may have been in the run before."""
        self._continues = False
        self._to_stop = 0
        """The number of a turn, since a stop may come before the turn: in the first workflow task of a run."""
        if request.query:
            # A run that continues as new in its first turn has the same input, and has seen this message.
            id = request.query_id or workflow.info().first_execution_run_id
            self._say(UserMessage(id=id, text=request.query))
        workflow.set_signal_handler(SAY, self._say)
        workflow.set_signal_handler(STOP, self._stop)
        workflow.set_signal_handler(END, self._end)
        workflow.set_update_handler(ASK, self._ask)
        workflow.set_query_handler(CONVERSATION_QUERY, self._view)
        workflow.set_query_handler(STATE_QUERY, self.state)

    async def next_turn(self) -> "Turn | None":
        """The next turn, when there is a message for it, or None when the run is to end.

        Raises:
            ContinueAsNewError: The history is long.
            ApplicationError: The history is full, and the conversation too long to be carried over.
        """
        state = self._state
        if self._turn is not None:
            # Only the turn that the run began with may go on from a checkpoint.
            self.request = self.request.model_copy(update={"query": "", "carried": None, "conversation": None})
            if self._waits():
                self._mark(working=False)
            if self._waits() or state.waiting:
                self._continue_if_long()
        if self._waits():
            with suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: not self._waits(), timeout=self._idle_limit, timeout_summary="idle limit"
                )
        is_resumed = state.current is not None
        if not is_resumed:
            if not state.waiting:
                return None
            state.current, state.steering = state.waiting.pop(0), []
            state.turn += 1
            self._mark(working=True)
        self._turn = Turn(self, state, is_resumed)
        self._turn.is_stopped = self._to_stop == state.turn
        return self._turn

    def state(self) -> ConversationState | None:
        """The conversation so far. As a part of the workflow's result, it lets another run go on from there. None if it
        is too long."""
        state = self._state.model_copy(update={"ended": False})
        if self._turn is not None and state.current is not None:  # the run was ended from outside
            state.messages, state.questions = [*state.messages], {**state.questions}
            state.unanswered = {**state.unanswered, state.turn: TurnResult(outcome="stopped")}
            state.take_in(self._turn.ids, self._turn.settled())
        so_far = _packed(state)
        return so_far if len(so_far.state) <= CARRIED_LIMIT else None

    def packed(self) -> ConversationState:
        """All of the conversation, for a run that continues as new in the middle of a turn."""
        return _packed(self._state)

    def over(self, ids: list[str], messages: list[ai.Message], result: TurnResult) -> bool:
        """Take in the turn that is over: its messages, and the ids of those that it has read. Returns whether the run
        goes on."""
        state = self._state
        if result.outcome != "answered":
            state.unanswered[state.turn] = result.model_copy(update={"text": ""})  # which is in the messages
        state.take_in(ids, messages)
        self._over = Status(answered=ids, outcome=result.outcome, problem=shortened(result.problem, PROBLEM_BYTES))
        return self._stay_open or bool(state.waiting)

    def _waits(self) -> bool:
        state = self._state
        return self._stay_open and not (state.ended or state.waiting or state.current)

    def _mark(self, *, working: bool) -> None:
        known = workflow.memo_value(MEMO, Status(), type_hint=Status)
        if (known.turn, known.working) != (self._state.turn, working):  # `first_memo()` has the first one
            workflow.upsert_memo({MEMO: self._over.model_copy(update={"turn": self._state.turn, "working": working})})

    def _continue_if_long(self) -> None:
        if is_long() and fits(len((state := self.packed()).state)):
            self._mark(working=False)  # where another message waits, too: the next run does not tell of this turn
            self.release()
            carried = Carried(usage=run_transcript().usage)
            continue_as_new(self.request.model_copy(update={"carried": carried, "conversation": state}))

    def release(self) -> None:
        """End the updates under way, since the run continues as new. They are sent again, to the next run."""
        self._continues = True

    # ── Signals, updates and queries ──

    def _say(self, message: UserMessage) -> None:
        state = self._state
        if message.id not in state.seen:
            state.seen = [*state.seen[1 - REMEMBERED_IDS :], message.id]
            state.waiting.append(message)

    def _stop(self, turn: int) -> None:
        self._to_stop = turn
        if self._turn is not None and self._turn.number == turn and self._state.current is not None:
            self._turn.stop()

    def _end(self) -> None:
        self._state.ended = True

    async def _ask(self, message: UserMessage) -> TurnResult:
        self._say(message)
        await workflow.wait_condition(lambda: self._continues or message.id not in self._unanswered())
        if message.id in self._unanswered():
            raise ApplicationError("ask the next run", type=CONTINUED)
        for turn in self._turns():
            if turn.has_read(message.id):
                return turn.result
        raise answered_long_ago(message.id)

    def _unanswered(self) -> list[str]:
        under_way = self._turn.ids if self._turn is not None and self._state.current is not None else []
        return [*under_way, *(message.id for message in self._state.waiting)]

    def _view(self, first: int) -> ConversationView:
        turns = [turn for turn in self._turns() if turn.number >= first]
        view = ConversationView(turns=turns, waiting=self._state.waiting)
        while len(view.model_dump_json().encode()) > PAYLOAD_LIMIT:
            if len(view.turns) > 1:
                del view.turns[: (len(view.turns) + 1) // 2]
            elif view.turns and len(said := view.turns[0].messages) > 1:
                del said[1 : 1 + len(said) // 2]
            else:
                del view.waiting[len(view.waiting) // 2 :]
        return view

    def _turns(self) -> list[TurnView]:
        said = self._turn.messages if self._state.current is not None and self._turn is not None else []
        return _turns_of(self._state, said)


def _turns_of(state: _State, current: list[ai.Message]) -> list[TurnView]:
    """All turns, with the messages of the current one."""
    turns = [TurnView(number=0, messages=[], outcome="answered")]
    for message in state.messages:
        if message.role == "user" and (number := state.questions.get(message.id)) is not None:
            result = state.unanswered.get(number, TurnResult(outcome="answered"))
            turns.append(TurnView(number=number, messages=[], outcome=result.outcome, problem=result.problem))
        turns[-1].messages.append(message)
    turns.append(TurnView(number=state.turn, messages=current, outcome=None))
    return [turn for turn in turns if turn.messages]


def _packed(state: _State) -> ConversationState:
    return ConversationState(turns=state.turn, state=packed(state.model_dump_json(exclude_none=True)))


def _unpacked(state: ConversationState) -> _State:
    return _State.model_validate_json(zlib.decompress(base64.b64decode(state.state)))


def view_of(state: ConversationState) -> ConversationView:
    """What was said, without a worker. Of a turn that was under way, only what people said in it."""
    plain = _unpacked(state)
    asked = [plain.current, *(steering.message for steering in plain.steering)] if plain.current else []
    return ConversationView(turns=_turns_of(plain, [_of_user(message) for message in asked]), waiting=plain.waiting)


def has_read(state: ConversationState, id: str) -> bool:
    """Whether a turn that is over has read a message. One that waits is read by the next run."""
    plain = _unpacked(state)
    open = [*plain.waiting, *(() if plain.current is None else (plain.current,))]
    return id in plain.seen and all(message.id != id for message in open)


def answered_long_ago(id: str) -> ApplicationError:
    """The error for a client that asks for the answer to a message which the conversation no longer has."""
    return ApplicationError(f"message {id!r} was answered long ago", type="AnsweredLongAgo")


def last_text_in(state: ConversationState) -> str:
    """What the model said last in a conversation."""
    return last_text(_unpacked(state).messages)


def last_text(messages: Sequence[ai.Message]) -> str:
    """The text of the last message of the model."""
    return next((text_of(message) for message in reversed(messages) if message.role == "assistant"), "")


class Turn:
    """One turn: `async with turn` around `ai.run()`. A stop ends the block at once, and raises nothing out of it. A
    failure of the loop does not either, while the conversation goes on."""

    def __init__(self, conversation: Conversation, state: _State, is_resumed: bool) -> None:
        assert state.current is not None
        self.number = state.turn
        self.question = state.current.text
        """For the loop."""
        self.text = ""
        """The answer: set it to what the loop says."""
        self.is_stopped = False
        self.conversation = conversation
        self._state, self._is_resumed = state, is_resumed
        self._asked = _of_user(state.current)
        self._said: list[ai.Message] = []
        """What came after the question, so far."""
        self._task: asyncio.Task[object] | None = None

    @property
    def ids(self) -> list[str]:
        """The ids of the messages that the turn has read."""
        return [self._asked.id, *(steering.message.id for steering in self._state.steering)]

    @property
    def messages(self) -> list[ai.Message]:
        """What was said in this turn, the question first."""
        return [self._asked, *self._said]

    @property
    def request(self) -> ConversationRequest:
        """What the run continues as new with."""
        return self.conversation.request

    async def earlier(self) -> list[ai.Message]:
        """For the loop: the messages before the question. Await it in the block, since they may be shortened now. To
        change one of them, copy it."""
        state, shorten = self._state, self.conversation.shorten
        if shorten is not None and state.messages and not self._is_resumed:
            state.messages = await shorten(list(state.messages))
            kept = {message.id for message in state.messages}
            state.questions = {id: turn for id, turn in state.questions.items() if id in kept}
            turns = set(state.questions.values())
            state.unanswered = {turn: result for turn, result in state.unanswered.items() if turn in turns}
        run_transcript().settle(state.messages)
        return list(state.messages)

    def stop(self) -> None:
        """End the turn. Its model and tool calls are cancelled."""
        self.is_stopped = True
        if self._task is not None:
            hurry()
            self._task.cancel()

    def settled(self) -> list[ai.Message]:
        """The messages as they go into the next turn: each tool call with a result, and no random id."""
        settled, steering = [self._asked], set(self.ids)
        for i, message in enumerate(self._said):
            known = message if message.role == "assistant" or message.id in steering else None
            settled.append(
                _with_results(known) if known else message.model_copy(update={"id": f"turn-{self.number}-{i}"})
            )
        return settled

    # ── For the model ──

    def check(self) -> None:
        """Go on no further if the turn or the run is cancelled. A call that is done before it knows of that returns."""
        if self.is_stopped or workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError

    def read(self, messages: list[ai.Message]) -> list[ai.Message]:
        """Before a model call: the messages of the loop, and among them the ones that steer the turn."""
        state, read = self._state, list[ai.Message]()
        before = {message.id for message in state.messages}
        passed = 0
        mine = sum(message.role == "assistant" and message.id not in before for message in messages)
        steering = [waiting for waiting in state.waiting if waiting.steers == self.number]
        state.waiting = [waiting for waiting in state.waiting if waiting not in steering]
        state.steering += [_Steering(after=mine, message=waiting) for waiting in steering]
        # The loop does not know of them, so they are put in their places before each call.
        for message in messages:
            if message.role == "assistant" and message.id not in before:
                read += [_of_user(steering.message) for steering in state.steering if steering.after == passed]
                passed += 1
            read.append(message)
        read += [_of_user(steering.message) for steering in state.steering if steering.after >= passed]
        self._said = [message for message in read if message.role != "system" and message.id not in before]
        question = next((i for i, message in enumerate(self._said) if message.role == "user"), None)
        if question is not None:  # the loop has made a message of it
            del self._said[question]
        return read

    def replied(self, message: ai.Message) -> None:
        """After a model call."""
        self._said.append(message)

    # ── The block ──

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        if self.is_stopped and not self._is_resumed:  # what was said before is known when the loop is there again
            self.stop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        if not workflow.in_workflow():  # the run is evicted from the worker's cache
            return False
        failure = failure_of(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(failure, workflow.ContinueAsNewError):
            self.conversation.release()
            return False
        if workflow.cancellation_reason() is not None:
            self.conversation.release()
            if error is None:  # the last call was done before it was cancelled
                raise asyncio.CancelledError
            return False
        if self.is_stopped:
            result = TurnResult(outcome="stopped", text=self.text)
            while task is not None and task.uncancel() > 0:
                pass
        elif failure is None:
            result = TurnResult(outcome="answered", text=self.text)
        elif isinstance(failure, FailureError):
            problem = reason_of(failure) if isinstance(failure, ActivityError) else failure.message
            result = TurnResult(outcome="failed", text=self.text, problem=problem)
        else:
            return False  # a bug outside of the loop, which is left to Temporal
        goes_on = self.conversation.over(self.ids, self.settled(), result)
        if result.outcome == "failed" and not goes_on:
            # The failure has what was said, so that no worker has to replay this run when the next one goes on.
            cause = failure.cause if isinstance(failure, ActivityError) else failure
            name = cause.type if isinstance(cause, ApplicationError) else type(cause).__name__
            raise ApplicationError(
                result.problem, self.conversation.state(), type=name, non_retryable=True
            ) from failure
        return goes_on or self.is_stopped


def _with_results(message: ai.Message) -> ai.Message:
    if all(call.status != "pending" for call in message.tool_calls):
        return message
    copied = message.model_copy(deep=True)
    for call in copied.tool_calls:
        if call.status == "pending":
            call.set_error("stopped before it was done, and nobody knows whether it took effect")
    return copied


def _of_user(message: UserMessage) -> ai.Message:
    return ai.Message(id=message.id, role="user", parts=[ai.TextPart(text=message.text)])


class ConversingModel(ContinuingModel):
    """A `ContinuingModel` whose calls read the messages that steer a turn, and keep the text of a stopped answer.

    Args:
        model: The model's name.
        turn: The turn that it works for.
        max_calls: Limit for one turn.
        max_tokens: Limit for all turns of the run.
        idle_timeout: As in `TemporalLanguageModel`.
        options: Activity options, over the ones in `MODEL_OPTIONS`.
    """

    def __init__(
        self,
        model: str,
        turn: Turn,
        *,
        max_calls: int = 50,
        max_tokens: int | None = None,
        idle_timeout: timedelta = IDLE_TIMEOUT,
        **options: Unpack[workflow.ActivityConfig],
    ) -> None:
        # A stopped turn waits for its activity to end, which returns the text that there is.
        waiting = workflow.ActivityConfig(
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
        )
        super().__init__(
            model,
            turn.request,
            max_calls=max_calls,
            max_tokens=max_tokens,
            idle_timeout=idle_timeout,
            **(waiting | options),
        )
        self._turn = turn

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        read = self._turn.read(messages)
        self._turn.check()
        async for message in super().stream(read, tools, output_type):
            self._turn.replied(message)
            yield message
            self._turn.check()

    @override
    def _carried_besides(self) -> dict[str, pydantic.BaseModel]:
        return {"conversation": self._turn.conversation.packed()}
