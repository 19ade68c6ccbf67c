"""The two activities: all I/O of the model calls and of the wrapped tools.

`llm_stream_activity` fetches the transcript from its workflow, calls the model and drains the answer.
`tool_call_activity` calls the original function of a tool by name. Both heartbeat in the background, so that the server
notices a dead worker within seconds.

Both classify their failures (bridge/failures.py). Final is a failure that the same call would meet again: a bug
(`TypeError`, `AttributeError`, …), a `ValueError`, most of HTTP 4xx, or an error with `is_retryable = False`. An
unusable answer of the model is final from the third attempt on. All others are left to the retry policy. A model call
that fails for good ends the run. A tool call that fails for good is told to the model.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

import pydantic
import vercel_ai_sdk as ai
from pydantic_core import to_jsonable_python
from temporalio import activity
from temporalio.exceptions import ApplicationError

from bridge.failures import MalformedStream, classified_failures, one_line
from bridge.heartbeats import Live, heartbeats
from bridge.messages import well_formed
from bridge.tools import tool_functions
from bridge.transcript import fetch_request
from bridge.wire import (
    PAYLOAD_LIMIT,
    STOPPED,
    ModelCall,
    ModelReply,
    ModelRequest,
    ToolCall,
    ToolReply,
    encodable,
    text_of,
)

# ── The model ────────────────────────────────────────────────────────────────────────────────────────────

UNUSABLE_ANSWER_ATTEMPTS = 3
"""From this attempt of a call on, an unusable answer is final. Attempts that failed for other reasons count, too. A
model may do better when it is asked again, but each attempt is paid for."""


@dataclass(frozen=True)
class ModelActivities:
    """The model activity, with the model class of its worker: see plugin.py."""

    make_model: Callable[[str], ai.LanguageModel]

    @activity.defn
    async def llm_stream_activity(self, call: ModelCall) -> ModelReply:
        """Fetch a request from the calling workflow, send it to the model, and return the finished message. If the
        workflow cancels the call, return the text so far, with the finish reason `STOPPED`.

        Raises:
            ApplicationError: Final also for an answer over `PAYLOAD_LIMIT`, and, from the attempt
                `UNUSABLE_ANSWER_ATTEMPTS` on, for an unusable one: empty, malformed, no `output_type`, or too long for
                the activity's time.
        """
        with classified_failures(), heartbeats() as live:
            request = await fetch_request(call.number)
            model = self.make_model(call.model)
            try:
                message = await _drain(model, request, call.idle_timeout, live)
            except asyncio.CancelledError:
                details = activity.cancellation_details()
                if not (details and details.cancel_requested and live.text):
                    raise
                # People have read this much of the answer, so it is kept (options/conversation.py).
                half = ai.Message(role="assistant", parts=[ai.TextPart(text=encodable(live.text))])
                return ModelReply(message=half, finish_reason=STOPPED)
            reply = ModelReply(
                message=well_formed(message, request),  # a call of a made-up tool tells the model so
                finish_reason=getattr(model, "finish_reason", None),
            )
            if not (message.tool_calls or message.files or text_of(message).strip()):
                raise _unusable_answer(f"the model answered with nothing (finish reason: {reply.finish_reason})")
            _check_size("the model's answer", reply)
            return reply


async def _drain(model: ai.LanguageModel, request: ModelRequest, idle_timeout: timedelta, live: Live) -> ai.Message:
    """Take in the whole answer, and show it as it comes. Gives up a silent model, and an answer that takes too long."""
    message: ai.Message | None = None
    clock = asyncio.get_running_loop().time
    limit = activity.info().start_to_close_timeout or timedelta.max
    try:
        async with (
            # Just before Temporal's own timeout, which would count as an outage, with up to 60 attempts.
            asyncio.timeout(limit.total_seconds() * 0.9) as too_long,
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
            raise _unusable_answer(
                f"the model's answer was not finished in time: start_to_close_timeout is {limit}"
            ) from None
        raise
    except (json.JSONDecodeError, pydantic.ValidationError) as error:  # the SDK's, for structured output
        if request.output_type is None:
            raise
        problem = f"the model's answer is not a {request.output_type.__name__}: {one_line(error)}"
        text = text_of(message) if message else ""
        raise _unusable_answer(problem, *[text] * (len(text) < OUTPUT_LIMIT)) from None
    except (MalformedStream, KeyError) as error:  # KeyError: how the SDK's models fail at a stream that makes no sense
        raise _unusable_answer(f"the model's stream is malformed: {one_line(error)}") from None
    if message is None:
        raise _unusable_answer("the model's stream was empty")
    return message


def _unusable_answer(problem: str, *output: str) -> ApplicationError:
    """With the text of a structured output that is none, the workflow can raise the error that the SDK has for it."""
    last = activity.info().attempt >= UNUSABLE_ANSWER_ATTEMPTS
    return ApplicationError(problem, *output, type="UnusableAnswer", non_retryable=last)


OUTPUT_LIMIT = PAYLOAD_LIMIT // 4
"""Characters of text in a failure, which has a limit of its own."""


# ── The tools ────────────────────────────────────────────────────────────────────────────────────────────


@activity.defn
async def tool_call_activity(call: ToolCall) -> ToolReply:
    """Call the original function of a tool and return its result, as JSON.

    Raises:
        ApplicationError: Final also for a result that is not JSON or over `PAYLOAD_LIMIT`. Retryable for a tool that
            this worker does not have, since another worker may have it.
    """
    function = tool_functions.get(call.tool)
    if function is None:
        raise ApplicationError(f"this worker has no tool {call.tool!r}", type="UnknownTool")
    return await tool_reply(call, function)


async def tool_reply(call: ToolCall, function: Callable[..., Awaitable[object]]) -> ToolReply:
    """In an activity: call a function as a tool, with heartbeats. Its failures are classified, its result checked."""
    with classified_failures():
        with heartbeats():
            result = await function(**call.arguments)
        try:
            reply = ToolReply(result=to_jsonable_python(result, bytes_mode="base64"))
            json.dumps(reply.result, allow_nan=False)
        except ValueError as error:  # final, as the same result would come again
            raise ValueError(f"the result of {call.tool} is not JSON: {one_line(error)}") from None
        _check_size(f"the result of {call.tool}", reply, call.result_limit)
        return reply


def _check_size(what: str, value: pydantic.BaseModel, share: int | None = None) -> None:
    """Refuse a result that the server would refuse, with a clear error. External storage takes any size."""
    size = len(value.model_dump_json().encode())
    if size > (share or PAYLOAD_LIMIT) and activity.client().data_converter.external_storage is None:
        limit = "its share of a history, with so many calls at once" if share else "Temporal's limit for one payload"
        raise ApplicationError(
            f"{what} has {size:,} bytes, over the {share or PAYLOAD_LIMIT:,} that are {limit}",
            type="PayloadTooLarge",
            non_retryable=True,
        )
