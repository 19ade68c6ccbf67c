"""Conversations, from the side of the client: send a message, ask and wait, see what a conversation is doing, list all.

    handle = await say(client, "trip", UserMessage(id="m1", text="and tomorrow?"), start)

`start` starts a run of that name. It is called when there is none, or when the latest one is over, with what was said.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast

import pydantic
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from options.approvals import open_questions
from options.conversation import (
    ASK,
    CONTINUED,
    CONVERSATION_QUERY,
    END,
    MEMO,
    SAY,
    STATE_QUERY,
    STOP,
    ConversationState,
    ConversationView,
    Status,
    TurnResult,
    UserMessage,
    answered_long_ago,
    has_read,
    view_of,
)
from options.hooks import open_hooks

TITLE_MEMO = "title"
"""The key of a run's memo under which people find what the conversation is about."""

QUERY_TIMEOUT = timedelta(seconds=10)
"""For one query: a worker may have to replay the run first."""

type Handle = WorkflowHandle[Any, Any]

type Start = Callable[[ConversationState | None], Awaitable[Handle]]
"""Starts a run that goes on with this conversation, or a new one, and has the message as its `query`. The run's memo is
`first_memo()`. A run that is open must not be joined: `WorkflowAlreadyStartedError` is expected then."""


class ConversationTooLong(Exception):
    """The conversation of a run that is over does not fit into the input of another one."""


class _Result(pydantic.BaseModel):
    """What matters here of a run's result, or of its input."""

    conversation: ConversationState | None = None


# ── Sending ──────────────────────────────────────────────────────────────────────────────────────────────


async def say(client: Client, workflow_id: str, message: UserMessage, start: Start) -> Handle:
    """Send a message: to the open run of that name, or to a new one that goes on from the latest. When this returns,
    the server has the message, whether a worker runs or not. Sent again with the same id, it counts once.

    Args:
        client: With the plugin `DurableAgents`.
        workflow_id: The name of the conversation.
        message: With `steers=await turn_under_way(handle)`, a message is read while the agent works; without, it gets
            a turn of its own.
        start: See `Start`.

    Raises:
        ConversationTooLong: The latest run is over, and the conversation too long for another one.
        RPCError: The server refuses. Or the latest run was ended from outside, so that a worker has to replay it, and
            none does (`DEADLINE_EXCEEDED`).
    """
    while True:
        description = await described(client, workflow_id)
        if description is not None and description.status == WorkflowExecutionStatus.RUNNING:
            handle = client.get_workflow_handle(workflow_id)
            try:
                await handle.signal(SAY, message)
                return handle
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
                continue  # the run ended meanwhile
        state = await state_of(client, description) if description is not None else None
        if state is not None and has_read(state, message.id):
            return client.get_workflow_handle(workflow_id)
        # Reading what was said may take seconds. Meanwhile another run may have come and gone.
        latest = await described(client, workflow_id)
        if (latest and latest.run_id) != (description and description.run_id):
            continue
        try:
            return await start(state)
        except WorkflowAlreadyStartedError:
            pass  # somebody else was faster, and the run takes messages


async def ask(client: Client, workflow_id: str, message: UserMessage, start: Start) -> TurnResult:
    """Send a message as `say()` does, and wait for the result of the turn that reads it. Safe to call again with the
    same message, in any process.

    Raises:
        WorkflowUpdateFailedError: The message was answered so long ago that the conversation does not have it any more.
        The errors of `say()`.
    """
    while True:
        handle = await say(client, workflow_id, message, start)
        try:
            result: TurnResult = await handle.execute_update(ASK, message, id=message.id, result_type=TurnResult)
            return result
        except WorkflowUpdateRPCTimeoutOrCancelledError as error:
            if not isinstance(error.__cause__, RPCError):  # this task is cancelled
                raise
        except WorkflowUpdateFailedError as error:
            if getattr(error.cause, "type", None) not in (CONTINUED, "AcceptedUpdateCompletedWorkflow"):
                raise
        except RPCError as error:
            if error.status == RPCStatusCode.FAILED_PRECONDITION:
                # A workflow task failed, and is made again: as where a message comes when the run is to continue.
                await asyncio.sleep(1)
                continue
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
        # The run ended, or continued as new. It may have answered first.
        with suppress(RPCError):  # no worker has answered in time
            if (answered := await _result_of(client, await handle.describe(), message.id)) is not None:
                return answered


async def _result_of(client: Client, run: WorkflowExecutionDescription, message_id: str) -> TurnResult | None:
    is_over = run.status != WorkflowExecutionStatus.RUNNING
    if is_over:
        state = await state_of(client, run)
        if state is None or not has_read(state, message_id):
            return None
        turns = view_of(state).turns
    else:
        turns = (await view(client.get_workflow_handle(run.id, run_id=run.run_id))).turns
    for turn in turns:
        if turn.outcome is not None and turn.has_read(message_id):
            return turn.result
    if is_over:
        raise WorkflowUpdateFailedError(answered_long_ago(message_id))
    return None


async def stop(handle: Handle) -> int | None:
    """Stop the turn under way. Returns its number, or None if there is none."""
    turn = await turn_under_way(handle)
    if turn is not None:
        await handle.signal(STOP, turn)
    return turn


async def end(handle: Handle) -> None:
    """End an open conversation, when all its messages are answered. It can be gone on with all the same."""
    await handle.signal(END)


# ── Looking ──────────────────────────────────────────────────────────────────────────────────────────────


async def described(client: Client, workflow_id: str) -> WorkflowExecutionDescription | None:
    """The latest run of a conversation, or None if there is none."""
    try:
        return await client.get_workflow_handle(workflow_id).describe()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        return None


async def status_of(execution: WorkflowExecution) -> Status:
    """What a conversation is doing, from the memo of its latest run. Of a run that is over, nothing."""
    memo = (await execution.memo()).get(MEMO)
    status = Status.model_validate(memo) if memo else Status()
    is_open = execution.status == WorkflowExecutionStatus.RUNNING
    return status if is_open else status.model_copy(update={"working": False})


async def turn_under_way(handle: Handle) -> int | None:
    """The number of the turn that a conversation works on, or None."""
    status = await status_of(await handle.describe())
    return status.turn if status.working else None


async def view(handle: Handle, first_turn: int = 0) -> ConversationView:
    """The messages of a conversation, live or over, from a turn on. A worker has to answer."""
    seen: ConversationView = await handle.query(
        CONVERSATION_QUERY, first_turn, result_type=ConversationView, rpc_timeout=QUERY_TIMEOUT
    )
    return seen


async def state_of(client: Client, description: WorkflowExecutionDescription) -> ConversationState | None:
    """What was said up to the end of a run that is over. Raises: see `say()`."""
    handle = client.get_workflow_handle(description.id, run_id=description.run_id, result_type=_Result)
    if description.status == WorkflowExecutionStatus.COMPLETED:
        result: _Result = await handle.result()
        if result.conversation is not None:
            return result.conversation
    elif description.status == WorkflowExecutionStatus.FAILED:
        try:
            await handle.result()
        except WorkflowFailureError as failure:
            details = failure.cause.details if isinstance(failure.cause, ApplicationError) else ()
            with suppress(pydantic.ValidationError):  # it is of another kind
                return ConversationState.model_validate(next(iter(details), None))
    # It was ended from outside, or it is of a time before there were conversations.
    result_type = cast(type, ConversationState | None)
    try:
        replayed: ConversationState | None = await handle.query(
            STATE_QUERY, result_type=result_type, rpc_timeout=QUERY_TIMEOUT
        )
    except RPCError as error:
        if error.status != RPCStatusCode.FAILED_PRECONDITION:
            raise
        return await _state_before(client, handle)  # it was ended before a worker took it up
    if replayed is None:
        raise ConversationTooLong(f"the conversation of run {description.id!r} is too long for another run")
    return replayed


async def _state_before(client: Client, handle: Handle) -> ConversationState | None:
    async for event in handle.fetch_history_events(page_size=1):
        payloads = event.workflow_execution_started_event_attributes.input.payloads
        request: _Result = (await client.data_converter.decode(payloads[:1], [_Result]))[0]
        return request.conversation
    return None


async def first_memo(previous: WorkflowExecution | None, title: str, state: ConversationState | None) -> dict[str, Any]:
    """The memo to start a run with. The title of a conversation stays."""
    kept = (await previous.memo()).get(TITLE_MEMO) if previous is not None else None
    return {TITLE_MEMO: kept or title, MEMO: Status(turn=state.turns + 1 if state else 1)}


@dataclass(frozen=True)
class Listed:
    """A conversation, as its latest run in Temporal's visibility has it."""

    id: str
    run_status: WorkflowExecutionStatus | None
    started: datetime
    title: str = ""
    status: Status | None = None
    """None if the memo cannot be read with the data converter of this client."""
    questions: Sequence[str] = ()
    """Tool calls that wait for an approval, and hooks that wait for an answer."""


async def conversations(client: Client, workflow_type: str) -> AsyncIterator[Listed]:
    """All conversations of a workflow, the open ones first. Needs no worker. What has just changed may be missing."""
    seen = set[str]()
    query = f'WorkflowType = "{workflow_type}" AND ExecutionStatus != "ContinuedAsNew"'
    async for execution in client.list_workflows(query):
        if execution.id in seen:
            continue
        seen.add(execution.id)
        listed = Listed(execution.id, execution.status, execution.start_time)
        with suppress(Exception):  # any error of a data converter: this one is encrypted, and others may not be
            memo = await execution.memo()
            is_open = execution.status == WorkflowExecutionStatus.RUNNING
            asked = [*map(str, open_questions(memo).values()), *(f"hook {label}" for label in open_hooks(memo))]
            listed = replace(
                listed,
                title=str(memo.get(TITLE_MEMO, "")),
                status=await status_of(execution),
                questions=asked if is_open else [],
            )
        yield listed
