"""The SDK's telemetry: a durable run tells the events that the same run tells without Temporal.

    ai.telemetry.enable(handler)    # in the process of the worker, or inside of a workflow

A handler that is enabled outside of workflows serves all runs of the process, several at once, in the threads of their
workflows. It is told nothing of the idle steps of `_Pump` in durable.py, and nothing while a run is replayed, queried
or dropped from the cache. When a process dies between an event and the end of its workflow task, the next one tells the
event again. A handler that fails is logged and the run goes on, since a replay would not fail there. For the same
reason a handler does not use `temporalio.workflow`.

The SDK's `OtelHandler` needs Temporal's tracer provider: where a run is replayed, it makes the open spans again, with
the same ids, and each span is exported once, when it ends.

    opentelemetry.trace.set_tracer_provider(temporalio.contrib.opentelemetry.create_tracer_provider())
    ai.telemetry.enable()
    client = await Client.connect(address, plugins=[DurableAgents(MyModel), OpenTelemetryPlugin()])
"""

import asyncio
import copy
import functools
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, TypeGuard, cast, override

import vercel_ai_sdk as ai
from temporalio import activity, workflow
from vercel_ai_sdk.core import telemetry
from vercel_ai_sdk.core.runtime import _runtime  # private: the `ai.run()` that an event is of
from vercel_ai_sdk.core.streams import Stream
from vercel_ai_sdk.core.telemetry import (
    Handler,
    RunFinishEvent,
    RunStartEvent,
    StepFinishEvent,
    StepStartEvent,
    TelemetryEvent,
    ToolCallFinishEvent,
    ToolCallStartEvent,
)

from bridge.failures import failure_of
from bridge.of_run import of_run

if TYPE_CHECKING:
    from vercel_ai_sdk.otel import OtelHandler  # needs OpenTelemetry, which is there if it is used

# ── Which handler ────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def tell_of_durable_runs() -> None:
    """Have the SDK's telemetry work in the workflows of this process."""
    # private: where `enable()` and `disable()` put the handler, and `handle()` finds it.
    telemetry._handler = cast(ContextVar[Handler], _Handlers(telemetry._handler))


class _Handlers:
    """Stands in for the SDK's context variable, whose value the threads of workflows do not have."""

    def __init__(self, context: ContextVar[Handler]) -> None:
        self._context = context
        self._of_process = context.get()

    def set(self, handler: Handler) -> Token[Handler]:
        if not (workflow.in_workflow() or activity.in_activity()):
            self._of_process = handler
        return self._context.set(handler)

    def get(self) -> Handler:
        if workflow.in_workflow():
            return _InWorkflow(self._context.get(self._of_process))
        if activity.in_activity():  # a tool may tell events of its own
            return self._context.get(self._of_process)
        return self._context.get()


# ── In a workflow ────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Told:
    """What is known of one `ai.run()`."""

    is_idle: bool = False
    """Whether the step that it is at is an idle one."""
    tool_starts: dict[object, int] = field(default_factory=dict)
    """On the workflow's clock in nanoseconds, by task and tool call: two agents in a run may have calls of one id."""
    resumes: bool = False
    """Whether it is on its way back to the step in which the workflow run before continued as new."""
    usage_before: ai.Usage | None = None
    """Tokens of the workflow runs before."""
    tracing: "tuple[OtelHandler, OtelHandler] | None" = None
    """The handler of the process, and the one that it became for this run."""


def _told() -> _Told:
    kept = vars(_runtime.get(None) or workflow.instance())  # a tool may be called outside of `ai.run()`
    return cast(_Told, kept.setdefault("__durable_agents_told__", _Told()))


class IdleStep(tuple[Stream, asyncio.Future[ai.StreamResult]]):
    """A step for the queue of `ai.run()` that is not told."""

    @override
    def __iter__(self) -> Iterator[Stream | asyncio.Future[ai.StreamResult]]:
        _told().is_idle = True  # private: `ai.run()` unpacks a step right before it tells that the step starts
        return super().__iter__()


@dataclass(frozen=True)
class _InWorkflow:
    handler: Handler

    def handle(self, event: TelemetryEvent) -> None:
        told = _told()
        if told.is_idle and isinstance(event, StepStartEvent | StepFinishEvent):
            told.is_idle = isinstance(event, StepStartEvent)
            return
        if self.handler is telemetry._NOOP and not isinstance(event, RunStartEvent):  # private: nobody listens
            return
        match event:
            case RunStartEvent():
                telemetry._run_id.set(_next_run_id())  # private: for `get_run_id()`; the SDK's own is random
                _note_resumed(told)
            case ToolCallStartEvent():
                told.tool_starts[asyncio.current_task(), event.tool_call_id] = workflow.time_ns()
            case ToolCallFinishEvent():
                # The SDK's clock would measure from the replay on.
                start = told.tool_starts.pop((asyncio.current_task(), event.tool_call_id), workflow.time_ns())
                event = replace(event, duration_ms=(workflow.time_ns() - start) / 1e6)
        by_run_before = told.resumes and isinstance(event, RunStartEvent | StepStartEvent)
        if isinstance(event, StepStartEvent):
            told.resumes = False
        is_new = _is_new()
        try:
            if _makes_spans(self.handler):
                _trace(self.handler, told, event, is_new)
            elif is_new and not (by_run_before or _continues(event)):
                self.handler.handle(_of_all_runs(event, told))
        except Exception:
            logging.getLogger(__name__).exception("the handler of telemetry failed")


RUNS_KNOWN = 10_000
"""Of how many workflow runs a process knows what it has told: far more than it serves at once."""

_last_told: OrderedDict[str, int] = OrderedDict()
"""The number of the last event that this process has told of a workflow run, by run id."""


def _is_new() -> bool:
    """Whether this is the first time that the workflow run comes to the next event.

    `is_replaying()` alone would tell some events twice: where a workflow task is made again after an error, and now and
    then where runs are not cached and queries come in between.
    """
    run_id, number = workflow.info().run_id, next(of_run(_event_numbers))
    if workflow.unsafe.is_replaying() or number <= _last_told.get(run_id, 0):
        return False
    _last_told[run_id] = number
    with suppress(KeyError):  # of two threads, the other one was first
        _last_told.move_to_end(run_id)
        if len(_last_told) > RUNS_KNOWN:
            _last_told.popitem(last=False)
    return True


def _event_numbers() -> Iterator[int]:
    return count(1)


def _next_run_id() -> str:
    """An id that is the same when the run is replayed."""
    number = next(of_run(_run_numbers))
    return hashlib.sha256(f"{workflow.info().run_id} {number}".encode()).hexdigest()[:16]


def _run_numbers() -> Iterator[int]:
    return count(1)


# ── Runs that continue as new ────────────────────────────────────────────────────────────────────────────


def _note_resumed(told: _Told) -> None:
    steps = ai.get_checkpoint().steps
    told.resumes = bool(steps and workflow.info().continued_run_id)
    for step in steps if told.resumes else ():
        told.usage_before = _sum(told.usage_before, step.to_stream_result().usage)


def _continues(event: TelemetryEvent) -> TypeGuard[RunFinishEvent]:
    """Whether an `ai.run()` ends since its workflow run continues as new."""
    error = event.error if isinstance(event, RunFinishEvent) else None
    return isinstance(error, BaseExceptionGroup) and isinstance(failure_of(error), workflow.ContinueAsNewError)


def _of_all_runs(event: TelemetryEvent, told: _Told) -> TelemetryEvent:
    return replace(event, usage=_sum(told.usage_before, event.usage)) if isinstance(event, RunFinishEvent) else event


def _sum(one: ai.Usage | None, other: ai.Usage | None) -> ai.Usage | None:
    return one + other if one and other else one or other


# ── OpenTelemetry ────────────────────────────────────────────────────────────────────────────────────────


def _makes_spans(handler: Handler) -> "TypeGuard[OtelHandler]":
    # By name, since `OtelHandler` cannot be imported without OpenTelemetry.
    return any(base.__module__ == "vercel_ai_sdk.otel" for base in type(handler).__mro__)


def _trace(handler: "OtelHandler", told: _Told, event: TelemetryEvent, is_new: bool) -> None:
    """Tell the handler also what was told before: it makes the open spans again, but ends them only once."""
    if not (is_new or _is_replay_safe(handler)):
        return
    if told.tracing is None or told.tracing[0] is not handler:
        told.tracing = handler, _for_one_run(handler)
    own = told.tracing[1]
    if _continues(event):
        event = RunFinishEvent(event.usage, None)  # each workflow run has a span of its own
    match event:
        case StepFinishEvent() if not is_new:
            own._step_spans.pop(event.step_index, None)
        case ToolCallFinishEvent() if not is_new:
            own._tool_spans.pop(event.tool_call_id, None)
        case RunFinishEvent() if not is_new:
            pass
        case _:
            own.handle(event)


def _is_replay_safe(handler: "OtelHandler") -> bool:
    tracer = handler._tracer  # private: what makes its spans
    if type(tracer).__name__ == "ProxyTracer":  # which it has if it was made before there was a tracer provider
        tracer = getattr(tracer, "_tracer", tracer)  # private: of OpenTelemetry
    return type(tracer).__module__.startswith("temporalio.contrib.opentelemetry")


@functools.cache
def _warn() -> None:
    logging.getLogger(__name__).warning(
        "spans of runs that leave the worker's cache are lost: OtelHandler needs the tracer provider that "
        "temporalio.contrib.opentelemetry.create_tracer_provider() makes"
    )


def _for_one_run(handler: "OtelHandler") -> "OtelHandler":
    if not _is_replay_safe(handler):
        _warn()
    own = copy.copy(handler)
    # private: the open spans. The SDK's handler has room for those of one run.
    own._root_span = own._root_context = None
    own._step_spans, own._tool_spans = {}, {}
    return own
