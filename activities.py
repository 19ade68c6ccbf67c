"""The two activities: all I/O of the model calls and of the wrapped tools.

`llm_stream_activity` fetches the conversation from its workflow, calls the model and drains the answer.
`tool_call_activity` calls the original function of a tool by name. Both heartbeat in the background, so that the server
notices a dead worker within seconds. Both sort their failures: what would fail again the same way is final, the rest is
left to the retry policy.

Nothing here names a tool, a model or a task queue.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import pydantic
import vercel_ai_sdk as ai
from pydantic_core import to_jsonable_python
from temporalio import activity
from temporalio.exceptions import ApplicationError

from bridge.failures import MalformedStream, one_line, sorted_failures
from bridge.messages import well_formed
from bridge.transcript import fetch_request
from bridge.wire import (
    PAYLOAD_LIMIT,
    LiveText,
    ModelCall,
    ModelReply,
    ModelRequest,
    ToolCall,
    ToolReply,
    encodable,
    text_of,
)

# ── The model ────────────────────────────────────────────────────────────────────────────────────────────

MALFORMED_ANSWER_ATTEMPTS = 3
"""Attempts of a call, counting those that failed for other reasons: from this one on, an answer that cannot be used is
final. A model may do better when it is asked again, but each attempt is paid for."""


@dataclass(frozen=True)
class ModelActivities:
    """Holds what the model activity depends on, so that a worker can be given any model class: see plugin.py."""

    make_model: Callable[[str], ai.LanguageModel]

    @activity.defn
    async def llm_stream_activity(self, call: ModelCall) -> ModelReply:
        """Fetch a request from the calling workflow, send it to the model, and return the finished message.

        Raises:
            ApplicationError: Not retryable where asking again cannot help (a bad key, an unknown model, a bad request:
                see `is_final`), and for an answer over `PAYLOAD_LIMIT`. From the attempt `MALFORMED_ANSWER_ATTEMPTS`
                on also for an answer that is empty, malformed or too long for the activity's time. Retryable otherwise.
        """
        with sorted_failures():
            async with _heartbeats() as live:
                request = await fetch_request(call.number)
                model = self.make_model(call.model)
                message = await _drain(model, request, call.idle_timeout, live)
                reply = ModelReply(
                    message=well_formed(message, request),
                    finish_reason=getattr(model, "finish_reason", None),
                )
                if not (message.tool_calls or message.files or text_of(message).strip()):
                    raise _unusable(f"the model answered with nothing (finish reason: {reply.finish_reason})")
                _check_size("the model's answer", reply)
                return reply


async def _drain(model: ai.LanguageModel, request: ModelRequest, idle_timeout: timedelta, live: "_Live") -> ai.Message:
    message: ai.Message | None = None
    clock = asyncio.get_running_loop().time
    time = activity.info().start_to_close_timeout or timedelta.max
    try:
        async with (
            # The server would end the attempt a moment later, and have it made again as often as for an outage.
            asyncio.timeout(time.total_seconds() * 0.9) as too_long,
            asyncio.timeout(idle_timeout.total_seconds()) as stalled,
            aclosing(model.stream(request.messages, request.tools or None, output_type=request.output_type)) as stream,
        ):
            async for message in stream:  # the last one is the whole message
                live.show(message)
                stalled.reschedule(clock() + idle_timeout.total_seconds())
    except TimeoutError:
        if stalled.expired():
            raise TimeoutError(f"the model sent nothing for {idle_timeout.total_seconds():g} s") from None
        if too_long.expired():
            raise _unusable(f"the model's answer was not finished in time: start_to_close_timeout is {time}") from None
        raise
    except (json.JSONDecodeError, pydantic.ValidationError) as error:
        if request.output_type is None:
            raise
        problem = f"the model's answer is not a {request.output_type.__name__}: {one_line(error)}"
        raise _unusable(problem) from None
    except (MalformedStream, KeyError) as error:  # KeyError: the SDK's, for a part of a block that was never begun
        raise _unusable(f"the model's stream is malformed: {one_line(error)}") from None
    if message is None:
        raise _unusable("the model's stream was empty")
    return message


def _unusable(problem: str) -> ApplicationError:
    last = activity.info().attempt >= MALFORMED_ANSWER_ATTEMPTS
    return ApplicationError(problem, type="MalformedAnswer", non_retryable=last)


# ── The tools ────────────────────────────────────────────────────────────────────────────────────────────

_originals: dict[str, Callable[..., Awaitable[object]]] = {}


def register_tool[**P, R](name: str, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Keep the original function of a tool for `tool_call_activity`, and return it as the activity will call it.

    `temporal_tool()` calls this when a module is imported, so that every worker process has every tool, also one
    that never ran the workflow.

    Args:
        name: The tool's name, as the model knows it.
        function: The function that the SDK's `@ai.tool` was put on. The arguments come from JSON and are turned
            into what its annotations say: pydantic models, dates, …
    """
    _originals[name] = typed = pydantic.validate_call(function)
    return typed


@activity.defn
async def tool_call_activity(call: ToolCall) -> ToolReply:
    """Call the original function of a tool and return its result, as JSON.

    Raises:
        ApplicationError: Not retryable for an error that the same arguments would cause again (see `is_final`), and
            for a result that is not JSON or over `PAYLOAD_LIMIT`. Retryable for the rest, and for a tool that this
            worker does not have, since another one may.
    """
    function = _originals.get(call.tool)
    if function is None:
        raise ApplicationError(f"this worker has no tool {call.tool!r}", type="UnknownTool")
    with sorted_failures():
        async with _heartbeats():
            result = await function(**call.arguments)
        try:
            reply = ToolReply(result=to_jsonable_python(result, bytes_mode="base64"))
            json.dumps(reply.result, allow_nan=False)
        except ValueError as error:
            raise ValueError(f"the result of {call.tool} is not JSON: {one_line(error)}") from None
        _check_size(f"the result of {call.tool}", reply)
        return reply


# ── Heartbeats ───────────────────────────────────────────────────────────────────────────────────────────

LIVE_SECONDS = 0.05
"""Seconds from the first news of a model to the heartbeat that reports it. The worker sends heartbeats on no more often
than its `max_heartbeat_throttle_interval` says."""

LIVE_LIMIT = 20_000
"""Characters of an answer that are reported while it comes: the last ones, since every report has them all."""


@asynccontextmanager
async def _heartbeats() -> AsyncGenerator["_Live"]:
    """Heartbeat while the body runs, also while it only waits: it is how the server knows that the worker lives."""
    live = _Live()
    # Without a timeout too, since a heartbeat is how an activity hears that it is cancelled.
    seconds = (activity.info().heartbeat_timeout or timedelta(minutes=1)).total_seconds() / 3

    async def beat() -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(live.changed.wait(), seconds)
                await asyncio.sleep(LIVE_SECONDS)  # more may come, and a call that is done by then needs no heartbeat
            live.changed.clear()
            activity.heartbeat(*live.details())

    task = asyncio.create_task(beat())
    try:
        yield live
    finally:
        task.cancel()


class _Live:
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


# ── Sizes ────────────────────────────────────────────────────────────────────────────────────────────────


def _check_size(what: str, value: pydantic.BaseModel) -> None:
    size = len(value.model_dump_json().encode())
    if size > PAYLOAD_LIMIT and activity.client().data_converter.external_storage is None:
        raise ApplicationError(
            f"{what} has {size:,} bytes, over Temporal's limit of {PAYLOAD_LIMIT:,} for one payload",
            type="PayloadTooLarge",
            non_retryable=True,
        )
