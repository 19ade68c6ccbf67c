"""The bridge: routes the model and tool calls of an unchanged agent loop into Temporal activities.

    with workflow.unsafe.imports_passed_through():
        from durable import TemporalLanguageModel, temporal_tool

    temporal_tool(search)    # when the module is imported

    @workflow.run
    async def run(self, query: str) -> str:
        async for message in ai.run(agent, TemporalLanguageModel("provider/model"), query):    # the unchanged loop
            ...

A workflow is replayed: its code runs again, and the recorded results of its activities come back at once. So there is
no clock, no randomness and no I/O in this file.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import ClassVar, Unpack, cast, override
from weakref import WeakSet

import pydantic
import vercel_ai_sdk as ai
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from vercel_ai_sdk.core.runtime import _runtime  # private: the `ai.run()` that a call belongs to

from activities import ModelActivities, tool_call_activity
from bridge.details import shortened
from bridge.failures import ToolError, errors_of_output, reason_of
from bridge.limits import expect_results, in_flight, result_limit
from bridge.telemetry import IdleStep
from bridge.tools import (
    check_wrappers,
    original_function,
    replace_tool,
    signature_of,
    specs_of,
    tool_functions,
    wrapped_already,
)
from bridge.transcript import run_transcript
from bridge.wire import STOPPED, ModelCall, ModelRequest, ToolCall, ToolReply

HEARTBEAT_TIMEOUT = timedelta(seconds=8)
"""How long a dead worker goes unnoticed. Both activities heartbeat every quarter of it (bridge/heartbeats.py): a worker
that is stopped for four seconds, or has too much to do, is not taken for dead."""

# ── Model calls ──────────────────────────────────────────────────────────────────────────────────────────

MODEL_OPTIONS = workflow.ActivityConfig(
    # A long answer may take as long as it takes. Silence is found by the idle timeout, a dead worker by the heartbeats.
    start_to_close_timeout=timedelta(hours=24),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    # Half an hour of backoff in all, or more if the provider names the time of the next attempt (`Retry-After`): rides
    # out an outage, but not for ever. A schedule-to-close timeout would go on counting while no worker runs.
    retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=30), maximum_attempts=60),
)

IDLE_TIMEOUT = timedelta(minutes=2)
"""Some models think for more than a minute before the first word."""


class TemporalLanguageModel(ai.LanguageModel):
    """A language model whose calls are activities. For use inside a workflow.

    Args:
        model: The model's name; the worker makes the real model of it (`DurableAgents`).
        max_calls: How many calls to allow: a loop that never ends must not cost money for ever. 50 is far more than an
            answer takes.
        max_tokens: From how many tokens on, in and out, no call is made. Those of all models of the workflow run
            count, as far as the models tell them, but not those of failed attempts.
        idle_timeout: How long the model may be silent before the attempt fails.
        options: Activity options, over the ones in `MODEL_OPTIONS`. A `retry_policy` needs `maximum_attempts`, or it
            retries for ever.
    """

    def __init__(
        self,
        model: str,
        *,
        max_calls: int = 50,
        max_tokens: int | None = None,
        idle_timeout: timedelta = IDLE_TIMEOUT,
        **options: Unpack[workflow.ActivityConfig],
    ) -> None:
        self.model = model
        self.max_calls = max_calls
        self.max_tokens = max_tokens
        self.calls = 0
        """How many calls were made."""
        self.finish_reason: str | None = None
        """Why the latest answer ended, in the model's words: `stop`, `tool-calls`, `length`, `content-filter`, …"""
        self._idle_timeout = idle_timeout
        self._options = options

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        """Run one model call as an activity and yield the finished message, once. Its text so far is in the activity's
        heartbeats while somebody watches (bridge/watching.py).

        Raises:
            ApplicationError: A limit on calls or tokens is reached, or `output_type` cannot be imported by a worker, or
                another tool has taken the name of a wrapped one, or two tools have one name.
            JSONDecodeError, ValidationError: The answer is no `output_type`, several times over.
            ActivityError: The call failed for good.

        A loop that takes its steps with `ai.stream_step` cannot catch these: `ai.run()` cancels the loop, and raises
        them inside an `ExceptionGroup`. The plugin takes one failure out, Temporal's own kinds first, and fails the
        workflow run with it. It does so for an error of the loop itself, too. Errors outside of `ai.run()` are left to
        Temporal.
        """
        self._check_limits()
        if output_type is not None and "." in output_type.__qualname__:
            problem = f"{output_type.__qualname__} is not defined at the top of a module: no worker can import it"
            raise ApplicationError(problem, type="OutputType", non_retryable=True)
        check_wrappers()
        self.calls += 1
        await _Pump.start()  # from now on `ai.run()` writes no timers
        request = ModelRequest(messages=messages, tools=specs_of(tools or ()), output_type=output_type)
        summary = f"{self.model}, call {self.calls}"
        options = workflow.ActivityConfig(summary=shortened(summary)) | MODEL_OPTIONS | self._options
        # The history keeps the input of an activity for good. So the request is not in it, only a number. While the
        # call is open, this workflow run keeps the request as JSON. The activity reads it in memory if its worker has
        # the run cached, or else by a Temporal query, in pages. Neither is recorded (bridge/transcript.py).
        with run_transcript().opened(request) as number, errors_of_output(output_type):
            async with in_flight(f"asking {summary}"):
                reply = await workflow.execute_activity_method(
                    ModelActivities.llm_stream_activity,
                    ModelCall(model=self.model, number=number, idle_timeout=self._idle_timeout),
                    **options,
                )
                run_transcript().replied(request, reply.message)  # for the transcript that people can query
        expect_results(len(reply.message.tool_calls))
        self.finish_reason = reply.finish_reason
        yield reply.message
        if reply.finish_reason == STOPPED:  # the call was cancelled, and waited for its activity
            raise asyncio.CancelledError

    def _check_limits(self) -> None:
        if self.calls >= self.max_calls:
            limit = f"the agent made {self.max_calls} model calls without coming to an answer"
            raise ApplicationError(limit, type="ModelCallLimit", non_retryable=True)
        used = usage.total_tokens if (usage := run_transcript().usage) else 0
        if self.max_tokens is not None and used >= self.max_tokens:
            limit = f"the agent used {used:,} tokens, and its limit is {self.max_tokens:,}"
            raise ApplicationError(limit, type="TokenLimit", non_retryable=True)


# ── Tool calls ───────────────────────────────────────────────────────────────────────────────────────────

TOOL_OPTIONS = workflow.ActivityConfig(
    start_to_close_timeout=timedelta(minutes=10),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    # Fewer attempts than for the model: when a tool does not work, the model can often do without it.
    retry_policy=RetryPolicy(maximum_attempts=5),
)

type BeforeToolCall = Callable[[ToolCall], Awaitable[None]]
"""Awaited in the workflow before a tool call. A `ToolError` refuses the call."""


def temporal_tool[**P, R](
    tool: ai.Tool[P, R], *, before: BeforeToolCall | None = None, **options: Unpack[workflow.ActivityConfig]
) -> ai.Tool[P, R]:
    """Make a tool's calls activities. Call it where a module is imported, not in a workflow.

    Returns a new tool of the same name and schema, which also replaces the tool in the SDK's registry: the loop may go
    on passing the plain tool to `ai.execute_tool`. Outside a workflow the new tool calls the original function. In a
    workflow, a call that fails for good raises a `ToolError`. That is a `JSONDecodeError`, as `ai.execute_tool` tells
    the model of no other error but `ValidationError`. The result of a call becomes plain JSON: a dictionary for a
    pydantic model.

    Every worker has to import the module of this call, also one that only runs activities.

    Args:
        tool: What `@ai.tool` made of an async function. The function must not block the event loop: all other
            calls of the worker would wait, and after a minute they would be made again elsewhere. Pydantic has to make
            JSON of its result.
        before: Awaited before each call, such as `ask_a_person` of options/approvals.py. It has to come from a module
            that is passed through, like the tool.
        options: Activity options, over the ones in `TOOL_OPTIONS`. `retry_policy=RetryPolicy(maximum_attempts=1)` means
            that each tool call is tried at most once. After a crash the model is told that nobody knows whether it took
            effect, and may make a new call. Where the service takes an idempotency key, keep the retries: the ids of
            workflow run and activity in `activity.info()` make a key.

    Raises:
        TypeError: The tool is no async function; or it takes an `ai.Runtime`, which lives in the workflow; or another
            tool of its name is wrapped already, or the same one with other options.
    """
    arguments = (tool, before, options)
    if (earlier := wrapped_already(tool.name, arguments)) is not None:
        return cast(ai.Tool[P, R], earlier)
    function = original_function(tool)
    signature = signature_of(function)
    tool_functions[tool.name] = call_original = pydantic.validate_call(function)

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not workflow.in_workflow():
            return await call_original(*args, **kwargs)
        try:
            activity_input = ToolCall.of(tool.name, signature.bind(*args, **kwargs))
        except TypeError as error:
            raise ToolError(f"{tool.name}: {error}") from error
        return cast(R, await call_tool(tool_call_activity, activity_input, before, options))

    return replace_tool(tool, call, arguments)


async def call_tool[C: ToolCall](
    activity: Callable[[C], Awaitable[ToolReply]],
    call: C,
    before: BeforeToolCall | None,
    options: workflow.ActivityConfig,
) -> pydantic.JsonValue:
    """In the workflow: make a tool call by an activity, and return its result.

    Raises:
        ToolError: The call is refused, or it failed for good.
    """
    await _Pump.start()
    if before is not None:
        await before(call)
    call.result_limit = result_limit()
    try:
        async with in_flight(f"calling {call.summary}"):
            summary = workflow.ActivityConfig(summary=shortened(call.summary))
            reply = await workflow.execute_activity(activity, call, **(summary | TOOL_OPTIONS | options))
    except ActivityError as error:
        if is_cancelled_exception(error):
            # As without Temporal: `asyncio.timeout()` in the loop expects no `ActivityError`.
            raise asyncio.CancelledError from error
        raise ToolError(f"{call.tool} failed: {reason_of(error)}") from error
    return reply.result


# ── No timers ────────────────────────────────────────────────────────────────────────────────────────────


class _Pump:
    """Keeps `ai.run()` from writing timers while it waits.

    `ai.run()` takes steps from a queue; a model call is a step. While the queue is empty, it looks again every 0.1 s,
    and in a workflow each of these waits is a durable timer: a tool that takes an hour would fill the history. While a
    step runs, `ai.run()` just awaits the step. So the pump queues an idle step, which yields no message. The idle step
    ends when the queue has another step or the mark that the loop is over, or when a message waits to be passed on.
    Then it queues itself again. The pump starts with the first model or tool call.
    """

    _started: ClassVar[WeakSet[ai.Runtime]] = WeakSet()
    """Shared by all workflow runs of the process. Each looks up only its own `Runtime`, so a replay is not affected."""

    @classmethod
    async def start(cls) -> None:
        """Start the pump of this `ai.run()`, unless it has one. Of two idle steps, each would find the other in the
        queue, end, and queue itself again: the workflow task would never end."""
        runtime = _runtime.get(None)
        if runtime is not None and runtime not in cls._started:
            cls._started.add(runtime)
            await cls._queue_idle_step(runtime)

    @classmethod
    async def _queue_idle_step(cls, runtime: ai.Runtime) -> None:
        result = asyncio.Future[ai.StreamResult]()  # the SDK wants one, and nobody awaits it
        step = IdleStep((functools.partial(cls._idle_step, runtime), result))
        await runtime._step_queue.put(step)  # private: `put_step()` would make a step of it that telemetry tells of

    @classmethod
    async def _idle_step(cls, runtime: ai.Runtime) -> AsyncGenerator[ai.Message]:
        steps, messages = runtime._step_queue, runtime._message_queue  # private: the queues of `ai.run()`
        await workflow.wait_condition(lambda: not (steps.empty() and messages.empty()))
        await cls._queue_idle_step(runtime)
        for message in list[ai.Message]():  # none; a step has to be a generator
            yield message
