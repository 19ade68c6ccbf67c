"""Runs by their names: look a run up, answer its question, tell its failure."""

import shlex
import uuid

from temporalio import exceptions
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.client import WorkflowUpdateFailedError as UpdateFailed
from temporalio.client import WorkflowUpdateRPCTimeoutOrCancelledError as UpdateLost
from temporalio.service import RPCError, RPCStatusCode

from app.command_line import OFFLINE_TASK_QUEUE, Options
from app.output import COMMAND, UserError, one_line, say
from app.questions import Answer, NoAnswer, Question, questions_in
from app.server import patiently
from options.approvals import APPROVAL, Approval
from options.continuing import CARRIED_LIMIT
from options.hooks import INVALID_RESOLUTION, memo_key
from workflow import AgentAnswer, AgentRequest, AgentWorkflow

type Handle = WorkflowHandle[AgentWorkflow, AgentAnswer]

# The remedy, by the type or the status of the failure that ended the run.
ADVICE = {
    "HTTP 400": "The model or the gateway does not take such a request; another --model may.",
    "HTTP 401": "Set AI_GATEWAY_API_KEY to a valid key and start a new run.",
    "HTTP 402": "Add credit for AI_GATEWAY_API_KEY and start a new run.",
    "HTTP 403": "See what AI_GATEWAY_API_KEY is allowed to do, or name another --model.",
    "HTTP 404": "Name another model with --model or AI_MODEL.",
    "ModelCallLimit": "The history shows what it kept asking for.",
    "PayloadTooLarge": "Ask for less at once.",
}


class UnfitAnswer(UserError):
    """The answer is not one that the question takes. It can be answered again."""


def check_size(request: AgentRequest) -> None:
    """UserError: the query is too large. Half of a payload is for the state that a run carries over."""
    size = len(request.model_dump_json().encode())
    if size > CARRIED_LIMIT:
        raise UserError(f"the query has {size:,} bytes, over the limit of {CARRIED_LIMIT:,}: shorten it")


async def find(client: Client, workflow_id: str) -> tuple[Handle, WorkflowExecutionDescription]:
    """Look a run up. UserError: there is none, or it is no agent's."""
    handle = client.get_workflow_handle_for(AgentWorkflow.run, workflow_id)
    try:
        description = await handle.describe()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        raise UserError(f"there is no run called {workflow_id!r}; add a query to start one") from error
    if description.workflow_type != "AgentWorkflow":
        raise UserError(f"{workflow_id!r} is the id of a {description.workflow_type}, not of an agent: choose another")
    return handle, description


async def join(client: Client, workflow_id: str, task_queue: str) -> tuple[Handle, bool]:
    """Look a run up, and whether it is under way. UserError: there is none, or it is not ours to work on."""
    handle, description = await find(client, workflow_id)
    running = description.status == WorkflowExecutionStatus.RUNNING
    if running and description.task_queue != task_queue:
        started = "offline" if description.task_queue == OFFLINE_TASK_QUEUE else "with an API key"
        raise UserError(f"run {workflow_id!r} was started {started}: join it the same way")
    return handle, running


async def has_worker(client: Client, task_queue: str) -> bool:
    """Whether a worker has asked this task queue for work in the last minutes."""
    request = DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=task_queue))
    return bool((await client.workflow_service.describe_task_queue(request)).pollers)


async def result_of(handle: Handle) -> AgentAnswer:
    """The answer of a run, when it is there.

    Raises:
        WorkflowFailureError: The run failed.
        UserError: The answer cannot be read, or the server is gone for good.
    """
    try:
        return await patiently(handle.result)
    except (WorkflowFailureError, RPCError, UserError):
        raise
    except Exception as error:  # any error of a data converter
        raise unreadable(error) from error


def unreadable(error: Exception) -> UserError:
    """The error of a data converter, for a payload that it does not know."""
    return UserError(f"the run cannot be read here ({one_line(error)}): is it encrypted, or stored elsewhere?")


async def task_queue_of(client: Client, options: Options) -> str:
    """Where the worker of this process takes its work from: for an answer, from that of the run which asks."""
    return (await find(client, options.id or ""))[1].task_queue or "" if options.answers else options.task_queue


async def questions_of(description: WorkflowExecutionDescription) -> dict[str, Question]:
    """The open questions of a run, by their keys in its memo. UserError: the memo cannot be read."""
    if description.status != WorkflowExecutionStatus.RUNNING:
        return {}
    try:
        return questions_in(await description.memo())
    except Exception as error:  # any error of a data converter
        raise unreadable(error) from error


async def answer_question(client: Client, options: Options) -> None:
    """Answer a question of a run. UserError: there is no such run or question, or the answer does not fit."""
    handle, description = await find(client, options.id or "")
    command = f"{COMMAND} --id {shlex.quote(handle.id)}"
    approved, reason = options.yes is not None, options.reason or ""
    label, line = options.resolve or (options.yes or options.no or "", "y" if approved else f"n {reason}")
    if options.resolve or memo_key(label) in description.raw_description.workflow_execution_info.memo.fields:
        question = (await questions_of(description)).get(memo_key(label))
        if question is None:
            raise UserError(f"no hook {label!r} waits in run {handle.id!r}")
        try:
            await send(handle, question.answer(line))
        except NoAnswer as error:
            hint = f"{command} {question.options[-1]}"
            raise UserError(f"hook {label!r} takes another answer ({error}): {hint}") from error
        say(f"Resolved: hook {label}")
    else:
        summary = await send(handle, Answer(APPROVAL, Approval(call=label, approved=approved, reason=reason)))
        say(f"{'Approved' if approved else 'Refused'}: {summary}")
    say(f"Follow the run with: {command}")


async def send(handle: Handle, answer: Answer) -> object:
    """Deliver an answer to a run, and return what the update returns.

    Raises:
        UnfitAnswer: The hook does not take it. It is still open.
        UserError: The question is not open, or the server is gone for good.
    """
    update_id = uuid.uuid4().hex  # one for all attempts, or the second would be told that the first has answered

    async def update() -> object:
        try:
            return await handle.execute_update(answer.update, answer.argument, id=update_id)
        except UpdateLost as error:  # hides its cause: a Ctrl-C, or a lost server
            raise error.__cause__ or error from None

    try:
        return await patiently(update)
    except UpdateFailed as error:
        unfit = isinstance(error.cause, exceptions.ApplicationError) and error.cause.type == INVALID_RESOLUTION
        raise (UnfitAnswer if unfit else UserError)(one_line(error.cause)) from error
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        raise UserError(f"run {handle.id!r} is over: nothing waits for an answer in it") from error
    except KeyError as error:  # the converter's, for an encoding that it does not know
        raise UserError(f"answered, but the run cannot be read here ({one_line(error)}): is it encrypted?") from error


def why_failed(error: BaseException) -> str:
    """The failure that ended a run in one line, and the remedy."""
    while error.__cause__ is not None and not isinstance(error, exceptions.ApplicationError):
        error = error.__cause__
    match error:
        case exceptions.CancelledError():
            return "the run was cancelled"
        case exceptions.TerminatedError():
            return f"the run was terminated: {one_line(error)}"
        case exceptions.ApplicationError(message=message, type=kind):
            advice = ADVICE.get(message[:8]) or ADVICE.get(kind or "", "")
            return f"the run failed: {one_line(error).rstrip('.')}. {advice}".rstrip()
    return f"the run failed: {one_line(error)}"
