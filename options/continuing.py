"""Continuing as new: a conversation of thousands of turns, which no single history could hold.

    class Request(pydantic.BaseModel):
        query: str
        carried: Carried | None = None

    @workflow.run
    async def run(self, request: Request) -> str:
        continuing = ContinueAsNew(request)
        llm = TemporalLanguageModel("provider/model", continuing=continuing)
        async for message in ai.run(agent, llm, request.query, checkpoint=continuing.checkpoint):
            ...

When the history is long, the next model call ends the run and starts another one with the same input and what this run
carries over. `ai.run()` answers from the checkpoint what was asked before, and the unchanged loop is where it was.

This is for loops that make one model call at a time. The SDK's checkpoint gives its steps back in the order in which
they were taken, so several calls at once, or tools that ask models, come back wrong. The run then fails.
"""

import base64
import hashlib
import zlib
from typing import Protocol

import pydantic
import vercel_ai_sdk as ai
from temporalio import workflow
from temporalio.exceptions import ApplicationError
from vercel_ai_sdk.core.checkpoint import HookEvent, StepEvent, ToolEvent

from bridge.transcript import conversation
from bridge.wire import PAYLOAD_LIMIT, ModelRequest, WireMessage

HISTORY_LIMIT = 40_000
"""Events at which a run has to continue as new, and fails if its conversation is too long for that. By default Temporal
suggests it at about 4,000 events or 4 MB of history, and ends a run at 51,200 events or 50 MB. The difference is room
for one more turn with many tools."""

HISTORY_SIZE_LIMIT = 40 * 1024 * 1024
"""The same in bytes."""

CARRIED_LIMIT = PAYLOAD_LIMIT // 2
"""Bytes that `Carried.state` may have: half of a payload, since there is more than that in the workflow's input."""


class Carried(pydantic.BaseModel):
    """The state that a run hands on when it continues as new; a field of the workflow's input."""

    calls: int = 0
    usage: ai.Usage | None = None
    said: str = ""
    """A hash of the conversation, to see whether the next run comes back to it."""
    state: str = ""
    """The checkpoint: JSON, compressed (to about a third for prose), in base64. The Web UI need not show it: the query
    `transcript` gives the conversation."""

    @property
    def checkpoint(self) -> ai.Checkpoint:
        """The steps and tool results of all runs before this one."""
        if not self.state:
            return ai.Checkpoint()
        plain = _Checkpoint.model_validate_json(zlib.decompress(base64.b64decode(self.state)))
        steps = [StepEvent(index=i, messages=messages) for i, messages in enumerate(plain.steps)]
        return ai.Checkpoint(steps=steps, tools=plain.tools, hooks=plain.hooks)


class _Checkpoint(pydantic.BaseModel):
    """An `ai.Checkpoint` as JSON, files in messages included."""

    steps: list[list[WireMessage]]
    tools: list[ToolEvent]
    hooks: list[HookEvent]


class Continuable(Protocol):
    """The workflow's input: a pydantic model with a field for the state that is carried over."""

    carried: Carried | None

    def model_copy(self, *, update: dict[str, object]) -> "Continuable":
        """As every pydantic model has it."""


class ContinueAsNew:
    """Continues the run as new from a model call when its history is long.

    Args:
        request: The workflow's input, which the next run gets as well.
    """

    def __init__(self, request: Continuable) -> None:
        self._request = request
        carried = request.carried or Carried()
        self._expected = carried.said
        self.calls = carried.calls
        self.checkpoint = carried.checkpoint
        """For `ai.run()`."""
        if carried.usage:
            conversation().usage = carried.usage

    def before_model_call(self, calls: int, messages: list[ai.Message]) -> None:
        """Let the call be made, or end the run.

        Args:
            calls: How many calls were made, those of the runs before this one included.
            messages: The conversation.

        Raises:
            ContinueAsNewError: The history is long.
            ApplicationError: The loop did not come back to where it was, or the history is full and the conversation
                too long to be carried over.
        """
        if calls == self.calls:
            # The first call of a run is always made, so that each run gets on. Only this one is compared: another model
            # of the run may begin with the same number of calls, but it has a conversation of its own.
            expected, self._expected = self._expected, ""
            if expected not in ("", _fingerprint(messages)):
                raise ApplicationError(
                    "when the run continued as new, the loop did not come back to where it was; does it make several "
                    "model calls at once, or has it tools that make some? Then leave out `continuing`",
                    type="NotResumable",
                    non_retryable=True,
                )
            return
        info = workflow.info()
        full = (
            info.get_current_history_length() >= HISTORY_LIMIT or info.get_current_history_size() >= HISTORY_SIZE_LIMIT
        )
        if not (full or info.is_continue_as_new_suggested()):
            return
        said = _fingerprint(messages)
        carried = Carried(calls=calls, usage=conversation().usage, said=said, state=_packed(ai.get_checkpoint()))
        if len(carried.state) <= CARRIED_LIMIT:
            workflow.continue_as_new(self._request.model_copy(update={"carried": carried}))
        if full:
            raise ApplicationError(
                f"the history is full, and the conversation is too long to continue as new: {len(carried.state):,} "
                f"bytes, where {CARRIED_LIMIT:,} can be carried over",
                type="ConversationTooLong",
                non_retryable=True,
            )


def _packed(checkpoint: ai.Checkpoint) -> str:
    done = {event.tool_call_id for event in checkpoint.tools}
    steps = [[_without_results(message, done) for message in step.messages] for step in checkpoint.steps]
    plain = _Checkpoint(steps=steps, tools=checkpoint.tools, hooks=checkpoint.hooks)
    packed = plain.model_dump_json(exclude_none=True).encode()
    # Fast where it is long: at the default level, 40 MB would hold the workflow up for seconds.
    packed = zlib.compress(packed, zlib.Z_BEST_SPEED if len(packed) > 10 * CARRIED_LIMIT else -1)
    return base64.b64encode(packed).decode()


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
