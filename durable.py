"""The bridge: routes the model and tool calls of an unchanged agent loop into Temporal activities.

    with workflow.unsafe.imports_passed_through():
        from durable import TemporalLanguageModel, temporal_failures, temporal_tool

    tools = [temporal_tool(search), temporal_tool(send_mail, approval=True)]    # when the module is imported

    @workflow.run
    async def run(self, query: str) -> str:
        llm = TemporalLanguageModel("provider/model")
        with temporal_failures():
            async for message in ai.run(agent, llm, query):    # the loop does not know
                ...

What runs inside a workflow is replayed: so there is no clock, no randomness and no I/O in it.
Nothing here names a tool, a model or a task queue. Copy this file together with activities.py.
"""

import asyncio
import base64
import functools
import hashlib
import inspect
import itertools
import zlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import MethodType
from typing import Any, ClassVar, Unpack, cast, override
from weakref import WeakSet

import pydantic
import vercel_ai_sdk as ai
from pydantic_core import to_json, to_jsonable_python
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, TimeoutError, is_cancelled_exception
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from vercel_ai_sdk.core.checkpoint import HookEvent, StepEvent, ToolEvent
from vercel_ai_sdk.core.runtime import _runtime  # private: the `ai.run()` that a call belongs to
from vercel_ai_sdk.core.tools import _tool_registry  # private: `temporal_tool()` replaces a tool under its name

from activities import (
    APPROVAL,
    PAYLOAD_LIMIT,
    QUERY,
    QUERY_PAGE,
    QUESTION_MEMO,
    TRANSCRIPT,
    Approval,
    ModelActivities,
    ModelCall,
    ModelRequest,
    OpenRequests,
    ToolCall,
    ToolError,
    ToolSpec,
    Transcript,
    WireMessage,
    open_requests,
    register_tool,
    tool_call_activity,
)

HEARTBEAT_TIMEOUT = timedelta(seconds=5)
"""How long a dead worker goes unnoticed. The activities heartbeat every third of it, unless the `Worker` holds the
heartbeats back: see `HEARTBEAT_THROTTLE`."""

HEARTBEAT_THROTTLE = timedelta(milliseconds=100)
"""The `max_heartbeat_throttle_interval` for every `Worker`. By default it holds heartbeats back for four seconds, and
with them the text that the model is writing and the news that a call is cancelled. Where heartbeats cost money, as on
Temporal Cloud, use a longer one, up to a third of the timeout: the text then comes in larger steps."""

MODEL_OPTIONS = workflow.ActivityConfig(
    # Far longer than an answer takes: silence is found by the idle timeout, a dead worker by the heartbeats.
    start_to_close_timeout=timedelta(minutes=10),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    # About half an hour of attempts: rides out an outage of the provider, but not for ever. There is no
    # schedule-to-close timeout, which would go on counting while no worker runs.
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=30), maximum_attempts=60),
)

TOOL_OPTIONS = workflow.ActivityConfig(
    start_to_close_timeout=timedelta(minutes=10),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    # Fewer: when a tool does not work, the model can often do without it.
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=10), maximum_attempts=5),
)

WORKFLOW_RUNNER = SandboxedWorkflowRunner(
    # The SDK imports some of its modules only when they are used, which for the sandbox would be inside a workflow.
    restrictions=SandboxRestrictions.default.with_passthrough_modules("vercel_ai_sdk")
)
"""The `workflow_runner` for every `Worker` and `Replayer` of workflows that use this file."""

HISTORY_LIMIT = 40_000
"""Events at which a run has to continue as new, and fails if its conversation is too long for that. By default Temporal
suggests it at about 4,000 events or 4 MB of history, and ends a run at 51,200 events or 50 MB. The difference is room
for one more turn with many tools."""

HISTORY_SIZE_LIMIT = 40 * 1024 * 1024
"""The same in bytes."""

CARRIED_LIMIT = PAYLOAD_LIMIT // 2
"""Bytes that `Carried.state` may have: half of a payload, since there is more than that in the workflow's input."""

SUMMARY_BYTES = 200
"""Longest summary given to an activity. The server refuses one over 400 bytes, and encryption makes it longer."""

QUESTION_BYTES = 8_000
"""Longest question for an approval. Long enough to show what is allowed, and short enough for many questions at once:
the server limits the size of a run's memo."""


def _shortened(text: str, limit: int) -> str:
    data = text.encode()
    return text if len(data) <= limit else data[:limit].decode(errors="ignore") + "…"


def _summarized(summary: str) -> workflow.ActivityConfig:
    return workflow.ActivityConfig(summary=_shortened(summary, SUMMARY_BYTES))


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────


class TemporalLanguageModel(ai.LanguageModel):
    """A language model whose calls are activities. For use inside a workflow.

    Args:
        model: The model's name; the worker's `ModelActivities` makes the real model of it.
        max_calls: How many calls to allow, those of the runs that this one continues included: a loop that never ends
            must not cost money for ever. 50 is far more than an answer takes.
        idle_timeout: How long no part of an answer may come before the call is given up and tried again. Two minutes,
            since some models think for more than one before the first word. The SDK's gateway model itself waits for
            five at most.
        carried: What an earlier run handed on, or an empty `Carried()`: lets the run continue as new. A call raises
            `HistoryFull` when it is time. Leave it out for loops that make several model calls at once or have tools
            that make some: the SDK's checkpoint gives its steps back in the order in which they were taken.
        options: Activity options, over the ones in `MODEL_OPTIONS`.
    """

    def __init__(
        self,
        model: str,
        *,
        max_calls: int = 50,
        idle_timeout: timedelta = timedelta(minutes=2),
        carried: "Carried | None" = None,
        **options: Unpack[workflow.ActivityConfig],
    ) -> None:
        self.model = model
        self.max_calls = max_calls
        self.calls = carried.calls if carried else 0
        """How many calls were made, those of the runs before this one included."""
        self.finish_reason: str | None = None
        """Why the latest answer ended, as the model said: `stop`, `tool-calls`, `length`, `content-filter`, …"""
        self._idle_timeout = idle_timeout
        self._carried = carried
        self._options = options

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        """Run one model call as an activity and yield the finished message, once: what it says meanwhile is in the
        activity's heartbeats (`LiveText`).

        Raises:
            ApplicationError: The limit on calls is reached, `output_type` cannot be imported by a worker, or the run
                cannot be continued as new, though it must.
            ActivityError: The call failed for good.
            HistoryFull: The run has to continue as new.
        """
        if self.calls >= self.max_calls:
            raise ApplicationError(
                f"the agent made {self.max_calls} model calls without coming to an answer",
                type="ModelCallLimit",
                non_retryable=True,
            )
        if output_type is not None and "." in output_type.__qualname__:
            raise ApplicationError(
                f"{output_type.__qualname__} is not defined at the top of a module: no worker can import it",
                type="OutputType",
                non_retryable=True,
            )
        if self._carried is not None:
            self._continue_as_new(self._carried, messages)
        self.calls += 1
        await _Pump.park()
        run = _run()
        run.usage = run.usage or (self._carried.usage if self._carried else None)
        run.transcript = messages
        request = ModelRequest(
            messages=messages,
            tools=[ToolSpec(name=t.name, description=t.description, param_schema=t.param_schema) for t in tools or ()],
            output_type=output_type,
        )
        summary = f"{self.model}, call {self.calls}"
        with run.opened(request) as number, run.doing(f"asking {summary}"):
            reply = await workflow.execute_activity_method(
                ModelActivities.llm_stream_activity,
                ModelCall(model=self.model, number=number, idle_timeout=self._idle_timeout),
                **(_summarized(summary) | MODEL_OPTIONS | self._options),
            )
            run.replied(reply.message)
        self.finish_reason = reply.finish_reason
        yield reply.message

    def _continue_as_new(self, carried: "Carried", messages: list[ai.Message]) -> None:
        if self.calls == carried.calls:
            # The first call of a run is always made, so that each run gets on. Only this one is compared: another model
            # of the run may begin with the same number of calls, but it has a conversation of its own.
            expected, carried.said = carried.said, ""
            if expected not in ("", _fingerprint(messages)):
                raise ApplicationError(
                    "when the run continued as new, the loop did not come back to where it was; does it make several "
                    "model calls at once, or has it tools that make some? Then leave out `carried`",
                    type="NotResumable",
                    non_retryable=True,
                )
            return
        info = workflow.info()
        full = (
            info.get_current_history_length() >= HISTORY_LIMIT or info.get_current_history_size() >= HISTORY_SIZE_LIMIT
        )
        if full or info.is_continue_as_new_suggested():
            carry = Carried.of(ai.get_checkpoint(), self.calls, _run().usage, _fingerprint(messages))
            if len(carry.state) <= CARRIED_LIMIT:
                raise HistoryFull(carry)
            if full:
                raise ApplicationError(
                    f"the history is full, and the conversation is too long to continue as new: {len(carry.state):,} "
                    f"bytes, where {CARRIED_LIMIT:,} can be carried over",
                    type="ConversationTooLong",
                    non_retryable=True,
                )


# ── Continuing as new ────────────────────────────────────────────────────────────────────────────────────


class HistoryFull(BaseException):
    """Raised instead of a model call when the run has to continue as new. Pass `carried` on:

        except HistoryFull as full:
            workflow.continue_as_new(request.model_copy(update={"carried": full.carried}))

    A `BaseException`, so that no `except Exception` on its way takes it for a failure of the model.
    """

    def __init__(self, carried: "Carried") -> None:
        super().__init__("the run has to continue as new")
        self.carried = carried


class _Checkpoint(pydantic.BaseModel):
    """An `ai.Checkpoint` as JSON, files in messages included."""

    steps: list[list[WireMessage]]
    tools: list[ToolEvent]
    hooks: list[HookEvent]


class Carried(pydantic.BaseModel):
    """What a run hands on when it continues as new; a field of the workflow's input.

    The next run gives `carried.checkpoint` to `ai.run()`, which answers from it what was asked before: the unchanged
    loop is where it was within a moment.
    """

    calls: int = 0
    usage: ai.Usage | None = None
    said: str = ""
    """A hash of the conversation, to see whether the next run comes back to it."""
    state: str = ""
    """The checkpoint: JSON, compressed (to about a third for prose), in base64. The Web UI need not show what is in it:
    the query `TRANSCRIPT` gives the conversation."""

    @classmethod
    def of(cls, checkpoint: ai.Checkpoint, calls: int, usage: ai.Usage | None, said: str) -> "Carried":
        """What the next run needs of this one: what was said and done, the count and the cost so far."""
        done = {event.tool_call_id for event in checkpoint.tools}
        steps = [[_without_results(message, done) for message in step.messages] for step in checkpoint.steps]
        plain = _Checkpoint(steps=steps, tools=checkpoint.tools, hooks=checkpoint.hooks)
        packed = plain.model_dump_json(exclude_none=True).encode()
        # Fast where it is long: at the default level, 40 MB would hold the workflow up for seconds.
        packed = zlib.compress(packed, zlib.Z_BEST_SPEED if len(packed) > 10 * CARRIED_LIMIT else -1)
        return cls(calls=calls, usage=usage, said=said, state=base64.b64encode(packed).decode())

    @property
    def checkpoint(self) -> ai.Checkpoint:
        """For `ai.run()`: the steps and tool results of all runs before this one."""
        if not self.state:
            return ai.Checkpoint()
        plain = _Checkpoint.model_validate_json(zlib.decompress(base64.b64decode(self.state)))
        steps = [StepEvent(index=i, messages=messages) for i, messages in enumerate(plain.steps)]
        return ai.Checkpoint(steps=steps, tools=plain.tools, hooks=plain.hooks)


def _without_results(message: ai.Message, done: set[str]) -> ai.Message:
    """The message as it was before its tools were called: the checkpoint has their results in another place."""
    bare = message.model_copy(deep=True)
    for part in bare.tool_calls:
        if part.tool_call_id in done:
            part.status, part.result = "pending", None
    return bare


def _fingerprint(messages: list[ai.Message]) -> str:
    # Only what models and tools said: a loop may well put the date into its system prompt.
    said = ModelRequest(messages=[message for message in messages if message.role == "assistant"])
    # A message that the loop makes itself has another random id in every run.
    text = said.model_dump_json(exclude_none=True, exclude={"messages": {"__all__": {"id"}}})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ── What a run keeps ─────────────────────────────────────────────────────────────────────────────────────


class _Run:
    """What one workflow run keeps for those who ask it: its own model activities, people and the Web UI."""

    def __init__(self) -> None:
        self.usage: ai.Usage | None = None
        self.transcript: list[ai.Message] = []
        self.asks_before_tools = False
        self._reply: ai.Message | None = None
        self._numbers = itertools.count(1)
        self.requests = OpenRequests()
        self._doing: list[str] = []
        self._questions: dict[str, str] = {}  # tool calls that wait for an approval
        self._answers: dict[str, Approval] = {}

    @contextmanager
    def opened(self, request: ModelRequest) -> Iterator[int]:
        """Keep the request of a model call for its activity to fetch, by the number that is yielded.

        An activity's input stays in the history for good, and each model call has the whole conversation so far in it:
        the history would grow with the square of the turns. A query's answer is not recorded.
        """
        number = next(self._numbers)
        # As bytes, which stay as they are whatever the loop does to its messages meanwhile.
        self.requests[number] = request.model_dump_json(exclude_none=True).encode()
        try:
            yield number
        finally:
            del self.requests[number]

    def page(self, number: int, start: int) -> bytes:
        """The query of the model activities."""
        return self.requests[number][start : start + QUERY_PAGE]

    def read_transcript(self) -> Transcript:
        """The query of people: the conversation so far, without its beginning if it is too long for a payload."""
        # The loop has an answer in its list only once it goes on, as the same object; the last one it never has.
        messages = [*self.transcript]
        if self._reply is not None and all(message is not self._reply for message in messages):
            messages.append(self._reply)
        transcript = Transcript(messages=messages)
        while len(transcript.model_dump_json().encode()) > PAYLOAD_LIMIT:
            omitted = len(messages) - len(transcript.messages) // 2
            transcript = Transcript(omitted=omitted, messages=messages[omitted:])
        return transcript

    def replied(self, message: ai.Message) -> None:
        self._reply = message
        if message.usage is not None:
            self.usage = message.usage if self.usage is None else self.usage + message.usage

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Have the Web UI show what the run is doing."""
        what = _shortened(what, SUMMARY_BYTES)
        self._doing.append(what)
        self._show()
        try:
            yield
        finally:
            self._doing.remove(what)
            if workflow.in_workflow():  # not while the run is evicted from the worker's cache
                self._show()

    def _show(self) -> None:
        lines = [f"- {what}" for what in self._doing] or ["nothing is under way"]
        if self.usage:
            lines += ["", f"{self.usage.input_tokens:,} tokens in, {self.usage.output_tokens:,} out"]
        workflow.set_current_details("\n".join(lines))

    async def approval(self, summary: str) -> Approval:
        """Ask a person whether a tool may be called, and wait for the answer for as long as it takes.

        The open questions are in the run's memo: who wants to know them needs no worker. Each has a key of its own,
        since the server takes no more than 4 MB at once, which many questions in one value would soon be.
        """
        call = workflow.uuid4().hex[:8]
        self._questions[call] = _shortened(summary, QUESTION_BYTES)
        workflow.upsert_memo({QUESTION_MEMO + call: self._questions[call]})
        try:
            with self.doing(f"waiting for an approval ({call}): {summary}"):
                await workflow.wait_condition(lambda: call in self._answers)
        finally:
            del self._questions[call]
            if workflow.in_workflow():  # not while the run is evicted from the worker's cache
                workflow.upsert_memo({QUESTION_MEMO + call: None})
        return self._answers[call]

    def answer(self, answer: Approval) -> str:
        """The update with which a person answers."""
        self._answers[answer.call] = answer
        return self._questions[answer.call]

    def check_answer(self, answer: Approval) -> None:
        if answer.call in self._answers:
            raise ApplicationError(f"tool call {answer.call!r} is answered already", type="AlreadyAnswered")
        if answer.call not in self._questions:
            raise ApplicationError(f"no tool call {answer.call!r} waits for an approval", type="UnknownCall")


def _run() -> _Run:
    # Found again through one of its handlers, since these are what a workflow run keeps by name.
    if handler := workflow.get_query_handler(QUERY):
        return cast(_Run, cast(MethodType, handler).__self__)
    run = _Run()
    open_requests[workflow.info().run_id] = run.requests
    workflow.set_query_handler(QUERY, run.page)
    if workflow.get_query_handler(TRANSCRIPT) is None:  # the workflow may have one of its own
        workflow.set_query_handler(TRANSCRIPT, run.read_transcript)
    workflow.set_update_handler(APPROVAL, run.answer, validator=run.check_answer)
    return run


# ── Tools ────────────────────────────────────────────────────────────────────────────────────────────────


_wrapped: dict[str, tuple[tuple[ai.Tool[..., Any], bool, workflow.ActivityConfig], ai.Tool[..., Any]]] = {}


def temporal_tool[**P, R](
    tool: ai.Tool[P, R], *, approval: bool = False, **options: Unpack[workflow.ActivityConfig]
) -> ai.Tool[P, R]:
    """Make a tool's calls activities. Call it where a module is imported, not in a workflow.

    Returns a new tool of the same name and schema, which also replaces the tool in the SDK's registry, where
    `ai.execute_tool` looks it up. Outside a workflow the new tool calls the original function. Inside, a call that
    fails for good raises a `ToolError`, which `ai.execute_tool` gives to the model. Either way the arguments arrive
    as the function annotates them, pydantic models included. The result, inside, is what JSON makes of it.

    The original function is kept for `tool_call_activity`, in every process that imports the module. Wrapping a tool
    again with the same options returns the first wrapper: the sandbox imports workflow files anew for every run.

    Args:
        tool: What `@ai.tool` made of an async function. Its result has to be JSON, as it has for the model. It must not
            block the event loop for seconds: the heartbeats would stop, and the call would be made again elsewhere.
        approval: Ask a person before each call, and wait for the answer: the update `APPROVAL`, with an `Approval`.
            A refusal goes to the model as a tool error. `ask_before_tools()` does the same for all tools of a run.
        options: Activity options, over the ones in `TOOL_OPTIONS`. A tool that must not run twice takes
            `retry_policy=RetryPolicy(maximum_attempts=1)`.

    Raises:
        TypeError: The tool takes an `ai.Runtime`, which lives in the workflow; or a tool of its name is wrapped
            already, another one or with other options.
    """
    if tool.name in _wrapped:
        earlier, wrapped = _wrapped[tool.name]
        if earlier == (tool, approval, options):
            return cast(ai.Tool[P, R], wrapped)
        raise TypeError(
            f"a tool called {tool.name} is wrapped already, with other options or as another tool. If it is this one, "
            "import the file that defines it with workflow.unsafe.imports_passed_through(), or the sandbox makes "
            "another one for every run"
        )

    function = tool._fn  # private: a Tool does not show the function it was made of
    signature = inspect.signature(function, eval_str=True)
    if any(parameter.annotation is ai.Runtime for parameter in signature.parameters.values()):
        raise TypeError(f"{tool.name} takes an ai.Runtime, which an activity cannot have")
    call_original = register_tool(tool.name, function)

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not workflow.in_workflow():
            return await call_original(*args, **kwargs)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ToolError(f"{tool.name}: {error}") from error
        arguments = {**dict(zip(signature.parameters, bound.args, strict=False)), **bound.kwargs}
        summary, run = _summary(tool.name, arguments), _run()
        await _Pump.park()
        try:
            if approval or run.asks_before_tools:
                answer = await run.approval(summary)
                if not answer.approved:
                    reason = answer.reason or "no reason given"
                    raise ToolError(f"a person did not allow this call of {tool.name}: {reason}")
            with run.doing(f"calling {summary}"):
                reply = await workflow.execute_activity(
                    tool_call_activity,
                    ToolCall(tool=tool.name, arguments=to_jsonable_python(arguments)),
                    **(_summarized(summary) | TOOL_OPTIONS | options),
                )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error  # which `asyncio.timeout()` in the loop knows
            raise ToolError(f"{tool.name} failed: {_reason(error)}") from error
        return cast(R, reply.result)

    wrapper = ai.Tool(fn=call, schema=tool.schema, validator=tool._validator)  # private: as with `_fn`
    _tool_registry[tool.name] = wrapper
    _wrapped[tool.name] = (tool, approval, options), wrapper
    return wrapper


def ask_before_tools() -> None:
    """Have every wrapped tool of this workflow run ask a person before it is called, as with `approval=True`."""
    _run().asks_before_tools = True


def temporal_tools(*tools: ai.Tool[..., Any], **options: Unpack[workflow.ActivityConfig]) -> list[ai.Tool[..., Any]]:
    """`temporal_tool()` for several tools, with the same options for all."""
    return [temporal_tool(tool, **options) for tool in tools]


def _summary(name: str, arguments: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={to_json(value).decode()}' for key, value in arguments.items())})"


def _reason(error: ActivityError) -> str:
    match error.cause:
        case TimeoutError(type=kind):
            return f"it was not finished in time ({kind.name.lower() if kind else 'timeout'})"
        case FailureError(message=message):
            return message
    return error.message


class _Pump:
    """Keeps the loop that `ai.run()` takes its steps with from writing timers while it has nothing to do.

    That loop waits for the next step for 0.1 s at a time, over and over. In a workflow each of these is a durable
    timer: a tool that takes an hour would fill the history. While there is a step it just awaits the step. So it is
    given one that produces nothing, and waits until there is another step or a message to pass on.
    """

    _parked: ClassVar[WeakSet[ai.Runtime]] = WeakSet()

    @classmethod
    async def park(cls) -> None:
        """Give the `ai.run()` that this is called in such a step, for good. There is one for every run, not more: a
        step makes way for any other, so two of them would make way for each other for ever."""
        runtime = _runtime.get(None)
        if runtime is not None and runtime not in cls._parked:
            cls._parked.add(runtime)
            await cls._put_step(runtime)

    @classmethod
    async def _put_step(cls, runtime: ai.Runtime) -> None:
        await runtime.put_step(functools.partial(cls._wait, runtime), asyncio.Future())

    @classmethod
    async def _wait(cls, runtime: ai.Runtime) -> AsyncGenerator[ai.Message]:
        steps, messages = runtime._step_queue, runtime._message_queue  # private: what that loop would find
        await workflow.wait_condition(lambda: not (steps.empty() and messages.empty()))
        await cls._put_step(runtime)
        for message in list[ai.Message]():  # yields nothing, as a step may
            yield message


# ── Failures ─────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def temporal_failures() -> Iterator[None]:
    """Let the workflow fail when the loop does. Put it around the iteration over `ai.run()`.

    `ai.run()` raises an `ExceptionGroup`, which Temporal takes for a bug in the workflow's code: it would retry the
    workflow task, and the run would hang for good. Raises what is inside the group in its place: what Temporal knows
    and `HistoryFull` as they are, anything else as an `ApplicationError` that is not retryable.
    """
    try:
        yield
    except (Exception, BaseExceptionGroup) as error:
        leaves = list(_leaves(error))
        for kind in (HistoryFull, workflow.ContinueAsNewError, FailureError):
            for leaf in leaves:
                if isinstance(leaf, kind):
                    raise leaf from leaf.__cause__  # keeps what makes it a cancellation, and leaves the group out
        if not isinstance(error, Exception):
            raise
        text = f"{type(leaves[0]).__name__}: {leaves[0]}".removesuffix(": ")
        raise ApplicationError(text, type=type(leaves[0]).__name__, non_retryable=True) from leaves[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
