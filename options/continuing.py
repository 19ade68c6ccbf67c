"""Continuing as new: a conversation of thousands of turns, which no single history could hold.

    class Request(pydantic.BaseModel):
        query: str
        carried: Carried | None = None

    @workflow.run
    async def run(self, request: Request) -> str:
        llm = ContinuingModel("provider/model", request)
        async for message in ai.run(agent, llm, request.query, checkpoint=llm.checkpoint):
            ...

When the history is long, the next model call ends the run and starts another one with the same input and what this run
carries over. `ai.run()` answers from the checkpoint what was asked before, and the unchanged loop is where it was.

This is for loops that make one model call at a time. The SDK's checkpoint gives its steps back in the order in which
they were taken, so several calls at once, or tools that ask models, come back wrong. The run then fails.
"""

import base64
import hashlib
import zlib
from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, Protocol, Self, Unpack, override

import pydantic
import vercel_ai_sdk as ai
from pydantic_core import to_json
from temporalio import workflow
from temporalio.exceptions import ApplicationError
from vercel_ai_sdk.core.checkpoint import HookEvent, StepEvent, ToolEvent

from bridge.transcript import run_transcript
from bridge.wire import PAYLOAD_LIMIT, ModelRequest, WireMessage
from durable import IDLE_TIMEOUT, TemporalLanguageModel

HISTORY_LIMIT = 40_000
"""Events at which a run has to continue as new, and fails if its conversation is too long for that. By default Temporal
suggests it at about 4,000 events or 4 MB of history, and ends a run at 51,200 events or 50 MB. The difference is room
for one more turn with many tools."""

HISTORY_SIZE_LIMIT = 40 * 1024 * 1024
"""The same in bytes."""

CARRIED_LIMIT = PAYLOAD_LIMIT // 2
"""Bytes that can be carried over: half of a payload, since there is more than that in the workflow's input."""


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
        return ai.Checkpoint(steps=steps, tools=[*plain.tools], hooks=plain.hooks)


class _ToolEvent(ToolEvent):
    """The result of a tool, which may be None, and then is left out."""

    result: Any = None


class _Checkpoint(pydantic.BaseModel):
    """An `ai.Checkpoint` as JSON, files in messages included."""

    steps: list[list[WireMessage]]
    tools: list[_ToolEvent]
    hooks: list[HookEvent]


class Request(Protocol):
    """The workflow's input: a pydantic model with a field for the state that is carried over."""

    carried: Carried | None

    def model_copy(self, *, update: dict[str, object]) -> Self:
        """As every pydantic model has it."""


class ContinuingModel(TemporalLanguageModel):
    """A `TemporalLanguageModel` that ends the run and continues it as new when its history is long.

    Args:
        model: The model's name.
        request: The workflow's input, which the next run gets as well.
        max_calls: Limit for the whole conversation, across all runs.
        max_tokens: The same.
        idle_timeout: As in `TemporalLanguageModel`.
        options: Activity options, over the ones in `MODEL_OPTIONS`.
    """

    def __init__(
        self,
        model: str,
        request: Request,
        *,
        max_calls: int = 50,
        max_tokens: int | None = None,
        idle_timeout: timedelta = IDLE_TIMEOUT,
        **options: Unpack[workflow.ActivityConfig],
    ) -> None:
        super().__init__(model, max_calls=max_calls, max_tokens=max_tokens, idle_timeout=idle_timeout, **options)
        carried = request.carried or Carried()
        self._request, self._expected = request, carried.said
        self.calls = self._calls_before = carried.calls
        self.checkpoint = carried.checkpoint
        """For `ai.run()`."""
        if carried.usage:
            run_transcript().usage = carried.usage

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        """Make the call, or end the run.

        Raises:
            ContinueAsNewError: The history is long.
            ApplicationError: The loop did not come back to where it was, or the history is full and the conversation
                too long to be carried over.
        """
        if self.calls == self._calls_before:  # the first call of a run is always made, so that each run gets on
            self._check_resumed(messages)
        else:
            self._check_limits()  # a run that may make no call is not continued
            self._continue_if_long(messages)
        async for message in super().stream(messages, tools, output_type):
            yield message

    def _check_resumed(self, messages: list[ai.Message]) -> None:
        # Another model of the run may begin with the same number of calls, but it has a conversation of its own: so
        # only the first conversation is compared.
        expected, self._expected = self._expected, ""
        if expected and expected != _fingerprint(messages):
            raise ApplicationError(
                "when the run continued as new, the loop did not come back to where it was; does it make several model "
                "calls at once, or has it tools that make some? Then it needs a `TemporalLanguageModel`",
                type="NotResumable",
                non_retryable=True,
            )

    def _continue_if_long(self, messages: list[ai.Message]) -> None:
        if not is_long():
            return
        said, state, besides = _fingerprint(messages), _packed(ai.get_checkpoint()), self._carried_besides()
        if fits(len(state) + len(to_json(besides))):
            carried = Carried(calls=self.calls, usage=run_transcript().usage, said=said, state=state)
            continue_as_new(self._request.model_copy(update={"carried": carried, **besides}))

    def _carried_besides(self) -> dict[str, pydantic.BaseModel]:
        """Other fields of the next run's input."""
        return {}


def continue_as_new(request: Request) -> NoReturn:
    """End the run and start another one, with its memo as it is now. By default, it would be as it was at the start."""
    workflow.continue_as_new(request, memo=dict(workflow.memo()))


def is_long() -> bool:
    """Whether the history of the current run is long enough to continue as new."""
    return _is_full() or workflow.info().is_continue_as_new_suggested()


def fits(size: int) -> bool:
    """Whether so many bytes can be carried over. If not, the run goes on without, until its history is full.

    Raises:
        ApplicationError: The history is full.
    """
    if size > CARRIED_LIMIT and _is_full():
        raise ApplicationError(
            f"the history is full, and the conversation is too long to continue as new: {size:,} bytes, "
            f"where {CARRIED_LIMIT:,} can be carried over",
            type="ConversationTooLong",
            non_retryable=True,
        )
    return size <= CARRIED_LIMIT


def _is_full() -> bool:
    info = workflow.info()
    return info.get_current_history_length() >= HISTORY_LIMIT or info.get_current_history_size() >= HISTORY_SIZE_LIMIT


def _packed(checkpoint: ai.Checkpoint) -> str:
    done = {event.tool_call_id for event in checkpoint.tools}
    steps = [[_without_results(message, done) for message in step.messages] for step in checkpoint.steps]
    tools = [_ToolEvent(**dict(event)) for event in checkpoint.tools]
    plain = _Checkpoint(steps=steps, tools=tools, hooks=checkpoint.hooks)
    return packed(plain.model_dump_json(exclude_none=True))


def packed(text: str) -> str:
    """The text, compressed, in base64."""
    data = text.encode()
    # Fast where it is long: at the default level, 40 MB would hold the workflow up for seconds.
    data = zlib.compress(data, zlib.Z_BEST_SPEED if len(data) > 10 * CARRIED_LIMIT else -1)
    return base64.b64encode(data).decode()


def _without_results(message: ai.Message, done: set[str]) -> ai.Message:
    """The message as it was before its tools were called: the checkpoint has their results in another place."""
    bare = message.model_copy(deep=True)
    for part in bare.tool_calls:
        if part.tool_call_id in done:
            part.status, part.result = "pending", None
    return bare


def _fingerprint(messages: list[ai.Message]) -> str:
    # Only the words of models and tools: a loop may well put the date into its system prompt.
    said = ModelRequest(messages=[message for message in messages if message.role == "assistant"])
    # A message that the loop makes itself has another random id in every run.
    text = said.model_dump_json(exclude_none=True, exclude={"messages": {"__all__": {"id"}}})
    return hashlib.sha256(text.encode()).hexdigest()[:16]
