"""The failure rules: which failures are final, how they are told, and how a loop's failure ends the run.

In an activity, `classified_failures()` turns an error into an `ApplicationError` that says whether to try again. In a
workflow, `failure_of()` finds the failure inside of the groups that `ai.run()` raises.
"""

import asyncio
import json
import traceback
from asyncio import events
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pydantic
import vercel_ai_sdk as ai
from temporalio import activity, workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, TimeoutError
from temporalio.worker.workflow_sandbox import RestrictedWorkflowAccessError
from vercel_ai_sdk.ai_gateway.errors import GatewayError

from bridge.redaction import redacted, redacted_detail
from bridge.retry_after import retry_delay
from bridge.wire import encodable

# The code is wrong, or the call is, and the same call is taken to fail again. Everything else may be a passing fault
# and is retried. `JSONDecodeError` and pydantic's `ValidationError` are ValueErrors: a tool that cannot read the answer
# of a service should raise an error of its own instead, a `RuntimeError` say.
PROGRAMMING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    StopAsyncIteration,
    StopIteration,
    TypeError,
)
FINAL_ERRORS = (*PROGRAMMING_ERRORS, ValueError, httpx.InvalidURL, httpx.LocalProtocolError, httpx.UnsupportedProtocol)


class ToolError(json.JSONDecodeError):
    """A tool call that failed for good, for the model to read.

    It has nothing to do with JSON. But `ai.execute_tool` reports only `JSONDecodeError` and pydantic's
    `ValidationError` to the model, and lets anything else end the run.
    """

    def __init__(self, message: str) -> None:
        ValueError.__init__(self, message)


class MalformedStream(Exception):
    """For model classes to raise: the answer came, but cannot be read. Tried again, but not as often as an outage."""


# ── In an activity ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def classified_failures() -> Iterator[None]:
    """Turn an error of the body into an `ApplicationError` that says whether to try again, without any secret.

    A `SystemExit`, `GeneratorExit` or `CancelledError` of the body's own is an error too: it would end the worker, or
    be taken for the cancellation of the activity.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, asyncio.CancelledError) and _is_cancelled()):
            raise
        while isinstance(error, BaseExceptionGroup):  # of a tool that uses a TaskGroup
            error = error.exceptions[0]
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration | StopAsyncIteration):
            error = error.__cause__  # which Python does not let out of a coroutine as it is
        if isinstance(error, ApplicationError):
            # `from None`, here and below: a cause would put its own text, secrets included, into the history.
            raise ApplicationError(
                redacted(error.message),
                *map(redacted_detail, error.details),
                type=error.type,
                non_retryable=error.non_retryable,
                next_retry_delay=error.next_retry_delay,
                category=error.category,
            ) from None
        raise ApplicationError(
            one_line(error),
            type=type(error).__name__,
            non_retryable=is_final(error),
            next_retry_delay=retry_delay(error),
        ) from None


def _is_cancelled() -> bool:
    """Whether the server, or the end of the event loop, cancels this activity."""
    task = asyncio.current_task()
    return activity.is_cancelled() or (task is not None and task.cancelling() > 0)


def is_final(error: BaseException) -> bool:
    """Whether the same call would fail the same way again, so that retrying it only costs time and money.

    An error may say so itself (`is_retryable`). Else an HTTP status decides where there is one (`status_code` on the
    error, as the SDKs of the model providers have it, or on its `response`): 4xx is final but for 408, 409, 425 and
    429. Otherwise the type decides.
    """
    retryable = getattr(error, "is_retryable", None)
    if isinstance(retryable, bool):
        return not retryable
    if isinstance(error, GatewayError) and error.__cause__ is not None:
        error = error.__cause__  # the SDK's gateway model wraps every error, a bug included
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return is_final_status(status)
    return isinstance(error, FINAL_ERRORS) or not isinstance(error, Exception)


def is_final_status(status: int) -> bool:
    """Whether an HTTP status says that the same request would be refused again."""
    return 400 <= status < 500 and status not in (408, 409, 425, 429)


def one_line(error: BaseException) -> str:
    """The error's text in one line of at most 2,000 characters, without secrets. It begins with the type where the text
    alone would not tell the error."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if not text or not isinstance(error, Exception) or isinstance(error, (*PROGRAMMING_ERRORS, httpx.TransportError)):
        text = f"{kind}: {text}".removesuffix(": ")
    # Every failed attempt stands in the history or the Web UI.
    return encodable(redacted(text))[:2000]


# ── In a workflow ────────────────────────────────────────────────────────────────────────────────────────


def failure_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one failure that ends a run, out of the groups that `ai.run()` raises.

    Temporal takes a group for a bug in the workflow's code. It would retry the workflow task, and the run would hang
    for good. So one failure is picked: continuing as new first, then a failure that Temporal knows, then any other,
    which becomes an `ApplicationError` that is not retryable.
    """
    leaves = _leaves(group)
    causes = [leaf.__cause__ for leaf in leaves if leaf.__cause__ is not None]  # see `errors_of_output()`
    for kind in (workflow.ContinueAsNewError, FailureError):
        for leaf in leaves + causes:
            if isinstance(leaf, kind):
                return leaf
    first = leaves[0]
    text = _io_in_workflow(first) or f"{type(first).__name__}: {first}".removesuffix(": ")
    failure = ApplicationError(text, type=type(first).__name__, non_retryable=True)
    failure.__cause__ = first
    return failure


def _io_in_workflow(error: BaseException) -> str | None:
    """What to do about I/O in the workflow. Temporal's sandbox and event loop refuse it, and do not name the tool."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    by_loop = isinstance(error, NotImplementedError) and frames[-1].f_code.co_filename == events.__file__
    if not (by_loop or isinstance(error, RestrictedWorkflowAccessError)):
        return None
    for frame in frames:
        if frame.f_code is ai.execute_tool.__code__:
            name = frame.f_locals["tool_call"].tool_name
            return f"the tool {name} does I/O in the workflow: make it an activity, with temporal_tool({name})"
    return (
        "the loop does I/O in the workflow: put it into a tool that is wrapped with temporal_tool()"
        if by_loop
        else None
    )


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


@contextmanager
def errors_of_output(output_type: type[pydantic.BaseModel] | None) -> Iterator[None]:
    """For a model call that has failed because its answer is no `output_type`: raise what the SDK raises then."""
    try:
        yield
    except ActivityError as error:
        cause = error.cause
        if output_type and isinstance(cause, ApplicationError) and cause.type == "UnusableAnswer" and cause.details:
            try:
                output_type.model_validate(json.loads(cause.details[0]))
            except ValueError as invalid:  # a JSONDecodeError or a ValidationError
                raise invalid from error
        raise


def reason_of(error: ActivityError) -> str:
    """Why an activity failed, for the model to read."""
    match error.cause:
        case TimeoutError(type=kind):
            kind_name = kind.name.lower() if kind else "timeout"
            return f"it was not finished in time ({kind_name}), and nobody knows whether it took effect"
        case ApplicationError(type="WorkerShutdown"):  # Temporal's, where there is no other attempt
            return "its worker was stopped, and nobody knows whether it took effect"
        case FailureError(message=message):
            return message
    return error.message
