"""Runs by their names: look a run up, answer its question, tell its failure."""

import shlex
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

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
from app.output import COMMAND, UserError, one_line, print_plain, say, title
from app.questions import Answer, NoAnswer, Question, questions_in
from app.server import patiently
from options.approvals import APPROVAL, Approval
from options.continuing import CARRIED_LIMIT
from options.conversation import ConversationState, Status, UserMessage
from options.conversation_client import (
    ConversationTooLong,
    Listed,
    conversations,
    described,
    end,
    first_memo,
    status_of,
    stop,
)
from options.conversation_client import say as say_to
from options.hooks import INVALID_RESOLUTION, memo_key
from workflow import AgentWorkflow
from workflow_types import AgentAnswer

type Handle = WorkflowHandle[AgentWorkflow, AgentAnswer]

type StartRun = Callable[[ConversationState | None, dict[str, Any]], Awaitable[Handle]]

# The remedy, by the type or the status of the failure that ended the run.
ADVICE = {
    "HTTP 400": "The model or the gateway does not take such a request; another --model may.",
    "HTTP 401": "Set AI_GATEWAY_API_KEY to a valid key and start a new run.",
    "HTTP 402": "Add credit for AI_GATEWAY_API_KEY and start a new run.",
    "HTTP 403": "See what AI_GATEWAY_API_KEY is allowed to do, or name another --model.",
    "HTTP 404": "Name another model with --model or AI_MODEL.",
    "ModelCallLimit": "The history shows what it kept asking for.",
    "TokenLimit": "The history shows what it used them for.",
    "PayloadTooLarge": "Ask for less at once.",
}


class UnfitAnswer(UserError):
    """The answer is not one that the question takes. It can be answered again."""


async def find(client: Client, workflow_id: str) -> tuple[Handle, WorkflowExecutionDescription]:
    """Look a run up. UserError: there is none, or it is no agent's."""
    description = await described(client, workflow_id)
    if description is None:
        raise UserError(f"there is no run called {workflow_id!r}; add a query to start one")
    if description.workflow_type != "AgentWorkflow":
        raise UserError(f"{workflow_id!r} is the id of a {description.workflow_type}, not of an agent: choose another")
    return client.get_workflow_handle_for(AgentWorkflow.run, workflow_id), description


async def join(client: Client, workflow_id: str, task_queue: str) -> tuple[Handle, str]:
    """Look a run up, and what it does, in words. UserError: there is none, or it is not ours to work on."""
    handle, description = await find(client, workflow_id)
    if description.status != WorkflowExecutionStatus.RUNNING:
        return handle, " is over"
    if description.task_queue != task_queue:
        started = "offline" if description.task_queue == OFFLINE_TASK_QUEUE else "with an API key"
        raise UserError(f"run {workflow_id!r} was started {started}: join it the same way")
    return handle, " is under way" if (await status_in(description)).working else " waits for a message"


async def status_in(description: WorkflowExecutionDescription) -> Status:
    """What a run does. UserError: the memo cannot be read."""
    try:
        return await status_of(description)
    except Exception as error:  # any error of a data converter
        raise unreadable(error) from error


async def send_message(
    client: Client, workflow_id: str, message: UserMessage, start: StartRun, task_queue: str
) -> tuple[Handle, str]:
    """Send a message to a conversation: to its open run, or to a new one. Returns its handle, and what became of the
    message, in words.

    Args:
        client: For the server.
        workflow_id: The name of the conversation.
        message: If the agent is at work, it is made to steer the turn under way.
        start: Starts a run that goes on from a conversation, or a new one, with this memo.
        task_queue: Of the workers of this process.

    Raises:
        UserError: The name is that of something else, or the message or the conversation is too large.
    """
    if (size := len(message.model_dump_json().encode())) > CARRIED_LIMIT:
        raise UserError(f"the query has {size:,} bytes, over the limit of {CARRIED_LIMIT:,}: shorten it")
    description = await described(client, workflow_id)
    became = ""
    if description is not None:
        _, became = await join(client, workflow_id, task_queue)
        if became == " is under way":
            message.steers = (await status_in(description)).turn
            became += ", and the message steers it"
        else:
            became = " goes on"

    async def begin(state: ConversationState | None) -> Handle:
        return await start(state, await first_memo(description, title(message.text), state))

    try:
        await say_to(client, workflow_id, message, begin)
    except ConversationTooLong as error:
        raise UserError(f"{one_line(error)}: start another one, without --id {shlex.quote(workflow_id)}") from error
    except RPCError as error:
        if error.status != RPCStatusCode.DEADLINE_EXCEEDED:
            raise
        raise UserError(
            f"run {workflow_id!r} did not end by itself, so a worker has to read what was said, and none answers: "
            "the message was not sent; start a worker and send it again"
        ) from error
    return client.get_workflow_handle_for(AgentWorkflow.run, workflow_id), became


async def signal_run(client: Client, options: Options) -> None:
    """Stop the turn under way, or end the conversation. UserError: there is none."""
    handle, description = await find(client, options.id or "")
    if description.status != WorkflowExecutionStatus.RUNNING:
        raise UserError(f"run {handle.id!r} is over")
    more = f'Go on with: {COMMAND} --id {shlex.quote(handle.id)} "…"'
    if options.end:
        await end(handle)
        say(f"Ending {handle.id}, when all messages are answered. {more}")
    elif (turn := await stop(handle)) is None:
        raise UserError(f"nothing to stop: {handle.id!r} waits for a message")
    else:
        say(f"Stopping turn {turn} of {handle.id}. {more}")


async def list_conversations(client: Client) -> None:
    """Write the conversations to standard output, the open ones first."""
    lines = [_line_of(listed) async for listed in conversations(client, "AgentWorkflow")]
    if not lines:
        say("There are no conversations.")
        return
    width = max(len(id) for id, _, _ in lines)
    print_plain("\n".join(f"{id:{width}}  {state:24}  {what}" for id, state, what in lines))


def _line_of(listed: Listed) -> tuple[str, str, str]:
    what = title(listed.title) if listed.status else "(cannot be read here: is it encrypted?)"
    state = "is over"
    if listed.run_status == WorkflowExecutionStatus.RUNNING:
        if listed.questions:
            state, what = "waits for your answer", f"{what}: {', '.join(map(title, listed.questions))}"
        elif listed.status is None:
            state = "is open"
        else:
            state = "works" if listed.status.working else "waits for your message"
    elif listed.run_status is not None and listed.run_status != WorkflowExecutionStatus.COMPLETED:
        state = listed.run_status.name.lower().replace("_", " ")  # failed, terminated, …
    return listed.id, state, what


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


def turn_failed(problem: str) -> str:
    """The failure that ended a turn in one line, and the remedy."""
    return f"the turn failed: {problem.rstrip('.')}. {ADVICE.get(problem[:8], '')}".rstrip()
