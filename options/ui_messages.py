"""A conversation as the messages of the AI SDK's UI: what `useChat` of the npm package `ai`, 7 and later, shows.

A turn is two UI messages: the question, and one of the assistant with all that came of it, step by step. `Sent`
gives the chunks that turn what a client has into what there is now. So whatever was sent stays consistent with the
message in the end: where an attempt of a model call failed, and the next one says something else, its text is taken
back with a `reset-step`.

The classes of the chunks, and their form on the wire, are those of `vercel_ai_sdk.ai_sdk_ui`. Its adapter
`to_sse_stream` follows a loop in its own process, from the first word on. It has no word for what comes of crashes and
of several clients, and the npm client would get some of it wrong. What is different here is marked `adapter:`.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pydantic
import vercel_ai_sdk as ai
from pydantic.alias_generators import to_camel
from pydantic_core import to_json
from vercel_ai_sdk.ai_sdk_ui import adapter, protocol

from bridge.details import shortened
from bridge.wire import ToolCall
from options.approvals import QUESTION_BYTES, REFUSED
from options.conversation import ConversationView, TurnView

# ── Messages ─────────────────────────────────────────────────────────────────────────────────────────────


class _Plain(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=to_camel, populate_by_name=True)


class StepStart(_Plain):
    """Begins what came of one model call."""

    type: Literal["step-start"] = "step-start"


class Said(_Plain):
    """Words of the model."""

    type: Literal["text", "reasoning"] = "text"
    text: str
    state: Literal["streaming", "done"] = "done"


class File(_Plain):
    """A file of the model's."""

    type: Literal["file"] = "file"
    media_type: str
    url: str


class Steering(_Plain):
    """A message of the user that was read in the middle of the turn."""

    type: Literal["steering-message"] = "steering-message"
    id: str
    parts: list[dict[str, pydantic.JsonValue]]


class Asked(_Plain):
    """The approval of a tool call."""

    id: str
    """That of the question, as `open_questions()` of options/approvals.py has it."""
    approved: bool | None = None
    reason: str | None = None


type ToolState = Literal[
    "input-streaming",
    "input-available",
    "approval-requested",
    "approval-responded",
    "output-available",
    "output-error",
    "output-denied",
]

DONE: tuple[ToolState, ...] = ("output-available", "output-error", "output-denied")


class Called(_Plain):
    """A tool call."""

    type: str
    """`tool-`, and the tool's name."""
    tool_call_id: str
    state: ToolState
    input: pydantic.JsonValue = None
    output: pydantic.JsonValue = None
    error_text: str | None = None
    approval: Asked | None = None

    @property
    def tool(self) -> str:
        return self.type.removeprefix("tool-")


type Part = StepStart | Said | File | Steering | Called

KINDS: dict[str, type[Part]] = {
    "step-start": StepStart,
    "text": Said,
    "reasoning": Said,
    "file": File,
    "steering-message": Steering,
}


class UIMessage(_Plain):
    """A message as a client shows it. Parts that are not known here, a client's own, are left out."""

    id: str
    role: Literal["user", "assistant", "system"]
    parts: list[Part]
    metadata: dict[str, pydantic.JsonValue] = {}
    """Of a turn: its number, `turn`, and where it is over its `outcome` and the `problem`."""

    @pydantic.field_validator("parts", mode="before")
    @classmethod
    def _known(cls, parts: Any) -> Any:
        if not isinstance(parts, list):
            return parts
        plain = [part for part in parts if isinstance(part, dict) and isinstance(part.get("type"), str)]
        kinds = [
            (KINDS.get(part["type"], Called if part["type"].startswith("tool-") else None), part) for part in plain
        ]
        known = [kind.model_validate(part) for kind, part in kinds if kind is not None]
        return known or [part for part in parts if isinstance(part, pydantic.BaseModel)]

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(part.text for part in self.parts if isinstance(part, Said) and part.type == "text")

    @property
    def answers(self) -> list[Asked]:
        """What a person says to the tool calls in it that wait for an approval."""
        calls = [part for part in self.parts if isinstance(part, Called) and part.state == "approval-responded"]
        return [call.approval for call in calls if call.approval is not None and call.approval.approved is not None]

    def plain(self) -> dict[str, Any]:
        """As a client has it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def ui_messages(view: ConversationView, questions: Mapping[str, str]) -> list[UIMessage]:
    """The messages of a conversation so far, for a client that begins to show it.

    Args:
        view: See `view()` of options/conversation_client.py.
        questions: The open questions of the run (`open_questions()` of options/approvals.py).
    """
    messages = list[UIMessage]()
    for turn in view.turns:
        messages.append(question_of(turn))
        parts = parts_of(turn, questions if turn.outcome is None else {})
        messages.append(
            UIMessage(id=message_id(turn.number), role="assistant", parts=parts, metadata=metadata_of(turn))
        )
    waiting = [UIMessage(id=message.id, role="user", parts=[Said(text=message.text)]) for message in view.waiting]
    return messages + waiting


def message_id(turn: int) -> str:
    """The id of the assistant's message in a turn. The same in every stream, so that a client knows it again."""
    return f"turn-{turn}"


def question_of(turn: TurnView) -> UIMessage:
    """The message that began a turn."""
    question = turn.messages[0]
    return UIMessage(id=question.id, role="user", parts=[Said(text=question.text)])


def metadata_of(turn: TurnView) -> dict[str, pydantic.JsonValue]:
    told: dict[str, pydantic.JsonValue] = {
        "turn": turn.number,
        "outcome": turn.outcome,
        "problem": turn.problem or None,
    }
    return {key: value for key, value in told.items() if value is not None}


def parts_of(turn: TurnView, questions: Mapping[str, str]) -> list[Part]:
    """What came of a question, as the parts of one message."""
    parts = list[Part]()
    said = turn.messages[1:]
    asked = _questions_by_call([call for message in said for call in message.tool_calls], questions)
    for message in said:
        if message.role == "user":
            parts.append(Steering(id=message.id, parts=[{"type": "text", "text": message.text}]))
            continue
        parts.append(StepStart())
        for part in message.parts:
            match part:
                case ai.ReasoningPart(text=text) | ai.TextPart(text=text) if text:
                    parts.append(Said(type=part.type, text=text))
                case ai.ToolPart():
                    parts.append(_called(part, asked.get(part.tool_call_id)))
                case ai.FilePart(data=data, media_type=media_type):
                    encoded = base64.b64encode(data).decode() if isinstance(data, bytes) else data
                    url = encoded if ":" in encoded else f"data:{media_type};base64,{encoded}"
                    parts.append(File(media_type=media_type, url=url))
    return parts


def live_parts(reasoning: str, text: str) -> list[Part]:
    """The step of a model call that is under way."""
    parts: list[Part] = [StepStart()]
    if reasoning:
        parts.append(Said(type="reasoning", text=reasoning, state="done" if text else "streaming"))
    if text:
        parts.append(Said(text=text, state="streaming"))
    return parts


def _called(part: ai.ToolPart, question: str | None) -> Called:
    # adapter: it gives the arguments as text, and the npm client would show them in quotes.
    call = Called(
        type=f"tool-{part.tool_name}",
        tool_call_id=part.tool_call_id,
        state="input-available",
        input=_arguments(part) or part.tool_args,
    )
    match part.status:
        case "pending" if question is not None:
            call.state, call.approval = "approval-requested", Asked(id=question)
        case "result":
            call.state, call.output = "output-available", part.result
        case "error":  # adapter: it gives errors as outputs
            problem = str(part.result).removeprefix("ToolError: ")
            refused = f"{REFUSED}{part.tool_name}: "
            if problem.startswith(refused):
                call.state = "output-denied"
                # The question is closed, and its id is forgotten.
                reason = problem.removeprefix(refused)
                call.approval = Asked(id=f"approval-of-{part.tool_call_id}", approved=False, reason=reason)
            else:
                call.state, call.error_text = "output-error", problem
    return call


def _arguments(part: ai.ToolPart) -> dict[str, pydantic.JsonValue] | None:
    try:
        arguments = json.loads(part.tool_args)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _questions_by_call(calls: list[ai.ToolPart], questions: Mapping[str, str]) -> dict[str, str]:
    """Which question is about which tool call, by the call's id. A question has the call as text, not the model's id of
    it, and its arguments may have been put in order and given their types: so the best match is taken first."""

    def same(text: str, tool: str, arguments: dict[str, pydantic.JsonValue]) -> bool:
        return text == shortened(ToolCall(tool=tool, arguments=arguments).summary, QUESTION_BYTES)

    def alike(text: str, tool: str, arguments: dict[str, pydantic.JsonValue]) -> bool:
        named = all(f"{name}={to_json(value).decode()}" in text for name, value in arguments.items())
        return text.startswith(f"{tool}(") and named

    def of_tool(text: str, tool: str, arguments: dict[str, pydantic.JsonValue]) -> bool:
        return text.startswith(f"{tool}(")

    found, left = dict[str, str](), dict(sorted(questions.items()))
    for matches in (same, alike, of_tool):
        for call in calls:
            if call.status != "pending" or call.tool_call_id in found:
                continue
            arguments = _arguments(call) or {}
            id = next((id for id, text in left.items() if matches(text, call.tool_name, arguments)), None)
            if id is not None:
                found[call.tool_call_id] = id
                del left[id]
    return found


# ── Chunks ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class ResetStepPart:
    """adapter: takes back what was sent since the latest `start-step`."""

    type: str = field(default="reset-step", init=False)


@dataclass
class SteeringMessagePart:
    """adapter: a message that was read in the middle of the turn."""

    id: str
    parts: list[dict[str, pydantic.JsonValue]]
    type: str = field(default="steering-message", init=False)


@dataclass
class ToolApprovalResponsePart:
    """adapter: what somebody, perhaps in another tab, answered to a question."""

    approval_id: str
    approved: bool
    reason: str | None = None
    type: str = field(default="tool-approval-response", init=False)


type Chunk = protocol.UIMessageStreamPart | ResetStepPart | SteeringMessagePart | ToolApprovalResponsePart


def sse(chunk: Chunk) -> str:
    """A chunk as a server-sent event."""
    return adapter.format_sse(cast(protocol.UIMessageStreamPart, chunk))  # it takes any dataclass


class Sent:
    """What a client has of a message.

    Args:
        parts: What it has from elsewhere.
    """

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        self._steps = _steps(parts)

    @property
    def parts(self) -> list[Part]:
        return [part for step in self._steps for part in step]

    def become(self, parts: Sequence[Part]) -> list[Chunk]:
        """The chunks that make it have these parts. What is said already, but not in these, stays: the next look at the
        conversation may have it."""
        chunks = list[Chunk]()
        for number, step in enumerate(_steps(parts)):
            first = sum(map(len, self._steps[:number]))
            if number == len(self._steps):
                chunks += [protocol.FinishStepPart()] * (number > 0)
                self._steps.append([])
            if (goes_on := _goes_on(self._steps[number], step, first)) is not None:
                more, self._steps[number] = goes_on
                chunks += more
            elif number == len(self._steps) - 1:  # only the latest step can be taken back
                more, self._steps[number] = _goes_on([StepStart()], step, first) or ([], step)
                chunks += [ResetStepPart(), *more]
        return chunks


def _steps(parts: Sequence[Part]) -> list[list[Part]]:
    steps = list[list[Part]]()
    for part in parts:
        if isinstance(part, StepStart) or not steps:
            steps.append([])
        steps[-1].append(part)
    return steps


def _goes_on(sent: list[Part], step: list[Part], first: int) -> tuple[list[Chunk], list[Part]] | None:
    """The chunks that are left to send of a step, and the step as the client has it then. None if that cannot be."""
    if len(step) < len(sent):
        # An attempt that says again what the one before it has said.
        return ([], sent) if all(map(_is_said_again, step, sent)) else None
    chunks, known = list[Chunk](), list[Part]()
    for number, part in enumerate(step):
        has = sent[number] if number < len(sent) else None
        if has is not None and _is_said_again(part, has):
            known.append(has)
            continue
        # Within a message, no two blocks have one id.
        more = _part_goes_on(has, part, f"part-{first + number}")
        if more is None:
            return None
        chunks += more
        known.append(_as_known(has, part))
    return chunks, known


def _as_known(has: Part | None, part: Part) -> Part:
    """The part as the client has it after its chunks."""
    if isinstance(has, Called) and isinstance(part, Called) and has.approval and part.state == "input-available":
        return has.model_copy(update={"state": "approval-responded"})
    return part


def _is_said_again(part: Part, sent: Part) -> bool:
    """Whether these are the first words, so far, of what was sent already."""
    if isinstance(part, Said) and isinstance(sent, Said):
        return part.state == "streaming" and part.type == sent.type and sent.text.startswith(part.text)
    return isinstance(part, StepStart) and isinstance(sent, StepStart)


def _part_goes_on(has: Part | None, part: Part, id: str) -> list[Chunk] | None:
    match part:
        case Said() if has is None or isinstance(has, Said):
            return _words(has, part, id)
        case Called() if has is None or (isinstance(has, Called) and has.tool_call_id == part.tool_call_id):
            return _call(has, part)
        case StepStart() if has is None:
            return [protocol.StartStepPart()]
        case File() if has is None:
            return [protocol.FilePart(url=part.url, media_type=part.media_type)]
        case Steering() if has is None:
            return [SteeringMessagePart(part.id, part.parts)]
    return [] if has == part else None


WORDS: dict[str, tuple[Callable[..., Chunk], ...]] = {
    "text": (protocol.TextStartPart, protocol.TextDeltaPart, protocol.TextEndPart),
    "reasoning": (protocol.ReasoningStartPart, protocol.ReasoningDeltaPart, protocol.ReasoningEndPart),
}


def _words(has: Said | None, part: Said, id: str) -> list[Chunk] | None:
    start, delta, end = WORDS[part.type]
    chunks = [start(id=id)] if has is None else []
    before = has or Said(type=part.type, text="", state="streaming")
    is_more = part.type == before.type and part.text.startswith(before.text)
    if not is_more or (before.state == "done" and part != before):
        return None
    if more := part.text[len(before.text) :]:  # adapter: it leaves out a text that nobody has seen come
        chunks.append(delta(id=id, delta=more))
    if part.state == "done" and before.state != "done":
        chunks.append(end(id=id))
    return chunks


def _call(has: Called | None, part: Called) -> list[Chunk]:
    id, chunks = part.tool_call_id, list[Chunk]()
    if has is None:
        chunks += [
            protocol.ToolInputStartPart(tool_call_id=id, tool_name=part.tool),
            protocol.ToolInputAvailablePart(tool_call_id=id, tool_name=part.tool, input=part.input),
        ]
    if has is not None and has.state in DONE:
        return chunks
    asked = has.approval if has is not None else None
    if part.approval is not None and asked is None:
        asked = part.approval
        chunks.append(protocol.ToolApprovalRequestPart(approval_id=asked.id, tool_call_id=id))
    is_answered = has is not None and has.state == "approval-responded"
    if asked is not None and not is_answered and part.state in ("input-available", "output-available", "output-denied"):
        reason = part.approval.reason if part.approval is not None else None
        chunks.append(ToolApprovalResponsePart(asked.id, part.state != "output-denied", reason))
    match part.state:
        case "output-available":
            chunks.append(protocol.ToolOutputAvailablePart(tool_call_id=id, output=part.output))
        case "output-error":
            chunks.append(protocol.ToolOutputErrorPart(tool_call_id=id, error_text=part.error_text or ""))
        case "output-denied":
            chunks.append(protocol.ToolOutputDeniedPart(tool_call_id=id))
    return chunks
