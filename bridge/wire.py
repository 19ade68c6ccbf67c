"""The data that crosses between the workflow and its activities, all of it as JSON.

Messages need care on the way. JSON has no bytes, and the SDK's parts have no field for a provider's metadata, which has
to come back with the part that it came with: a thinking model refuses its own thought without the signature.
"""

import base64
import inspect
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Self, override

import pydantic
import vercel_ai_sdk as ai
from pydantic_core import to_json, to_jsonable_python

PAYLOAD_LIMIT = 2 * 1024 * 1024 - 1024
"""Bytes of JSON. Temporal servers refuse a payload of over 2 MiB by default; the rest is room for its metadata."""

type Metadata = dict[str, Any]
"""Data that a provider wants back, by the provider's name."""

# ── Messages ─────────────────────────────────────────────────────────────────────────────────────────────


class _Provided(pydantic.BaseModel):
    """A part with the metadata of its provider, such as the signature of a thought."""

    provider_metadata: Metadata = pydantic.Field(default_factory=dict)


class ProviderText(ai.TextPart, _Provided): ...


class ProviderReasoning(ai.ReasoningPart, _Provided): ...


class ProviderFile(ai.FilePart, _Provided): ...


class ProviderTool(ai.ToolPart, _Provided):
    """`provider_executed`: the provider itself ran the tool. The result then may have metadata as well."""

    provider_executed: bool = False
    result_metadata: Metadata = pydantic.Field(default_factory=dict)


class ProviderMessage(ai.Message):
    """A message of the model with calls of tools that the provider ran, or with many parts. See `message_of()`.

    The loop has nothing left to do for what the provider ran.

    Deep copies share the parts that are the same. `ai.run()` passes on a copy of the whole message for each result of a
    tool. With a thousand calls in a message, a million parts would be copied in one workflow task.
    """

    @cached_property  # no private attribute of pydantic, which would count when messages are compared
    def _copied(self) -> dict[int, tuple[ai.Part, dict[str, Any], ai.Part]]:
        """By id: the part, its fields when it was last copied, and that copy."""
        return {}

    @override
    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy(update={"parts": [self._copy_of(part) for part in self.parts], "usage": self.usage})

    def _copy_of(self, part: ai.Part) -> ai.Part:
        _, fields, copied = self._copied.get(id(part), (part, None, part))
        if fields != part.__dict__:
            copied = part.model_copy(deep=True)
            self._copied[id(part)] = part, dict(part.__dict__), copied
        return copied

    @property
    @override
    def tool_calls(self) -> list[ai.ToolPart]:
        return [call for call in super().tool_calls if not is_provider_executed(call)]


MANY_PARTS = 50


def message_of(fields: dict[str, Any]) -> ai.Message:
    """The message with these fields, which are known to be right."""
    return (ProviderMessage if _are_special(fields["parts"]) else ai.Message).model_construct(**fields)


def _are_special(parts: list[ai.Part]) -> bool:
    return len(parts) >= MANY_PARTS or any(map(is_provider_executed, parts))


PROVIDER_PARTS: dict[str, type[_Provided]] = {
    "text": ProviderText,
    "reasoning": ProviderReasoning,
    "file": ProviderFile,
    "tool": ProviderTool,
}


def is_provider_executed(part: ai.Part) -> bool:
    """Whether this is a tool call that the provider ran itself."""
    return isinstance(part, ProviderTool) and part.provider_executed


def metadata_of(part: ai.Part) -> Metadata:
    """The metadata that the provider sent with a part, or {}."""
    return part.provider_metadata if isinstance(part, _Provided) else {}


def text_of(message: ai.Message) -> str:
    """All the text of a message. `Message.text` is only the first part of it."""
    return "".join(part.text for part in message.parts if isinstance(part, ai.TextPart))


def encodable(text: str) -> str:
    """The text with halves of surrogate pairs, which cannot be encoded, joined or replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _dump_message(message: ai.Message, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
    plain_message = message
    if any(part.type == "file" and isinstance(part.data, bytes) for part in message.parts):
        plain_message = message.model_copy(update={"parts": list(map(_with_base64, message.parts))})
    dumped: dict[str, Any] = handler(plain_message)
    for part, plain in zip(message.parts, dumped["parts"], strict=True):
        if part.type == "file" and isinstance(part.data, bytes):
            plain["encoding"] = "base64"  # `FilePart.data` may be a string as well
        if metadata := metadata_of(part):
            plain["provider_metadata"] = metadata
        if isinstance(part, ProviderTool) and part.provider_executed:
            plain |= {"provider_executed": True, "result_metadata": part.result_metadata}
    return dumped


def _with_base64(part: ai.Part) -> ai.Part:
    if part.type == "file" and isinstance(part.data, bytes):
        return part.model_copy(update={"data": base64.b64encode(part.data).decode()})
    return part


def _load_message(value: Any, handler: pydantic.ValidatorFunctionWrapHandler) -> ai.Message:
    if not isinstance(value, dict):
        return handler(value)  # type: ignore[no-any-return]  # a message already, and the same object stays
    message = handler({**value, "parts": [_load_part(part) for part in value.get("parts", ())]})
    return message_of(vars(message)) if _are_special(message.parts) else message


def _load_part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    if part.get("type") == "file" and part.get("encoding") == "base64":
        part = {**part, "data": base64.b64decode(part["data"])}
    if "provider_metadata" in part or "provider_executed" in part:
        return PROVIDER_PARTS[part["type"]].model_validate(part)
    return part


WireMessage = Annotated[ai.Message, pydantic.WrapSerializer(_dump_message), pydantic.WrapValidator(_load_message)]
"""An `ai.Message` that comes out of JSON as it went in, binary files and the metadata of providers included. For fields
of pydantic models: Temporal takes it for a plain `ai.Message` where it is the type of a whole payload."""

_MESSAGE: pydantic.TypeAdapter[ai.Message] = pydantic.TypeAdapter(WireMessage)


def json_of(message: ai.Message) -> bytes:
    """The message as JSON."""
    return _MESSAGE.dump_json(message, exclude_none=True)


_PART: pydantic.TypeAdapter[ai.Part] = pydantic.TypeAdapter(ai.Part)


def part_of(plain: dict[str, Any]) -> ai.Part:
    """A part of such a message, out of its JSON."""
    return _PART.validate_python(_load_part(plain))


# ── Model calls ──────────────────────────────────────────────────────────────────────────────────────────


class ToolSpec(pydantic.BaseModel):
    """A tool as the model is told of it (`ai.ToolLike`)."""

    name: str
    description: str
    param_schema: dict[str, Any]


class ModelRequest(pydantic.BaseModel):
    """Everything one model call is made of. Stays out of the history: see transcript.py."""

    messages: list[WireMessage]
    tools: list[ToolSpec] = []
    output_type: pydantic.ImportString[type[pydantic.BaseModel]] | None = None


class RequestJson:
    """A `ModelRequest` as JSON, in pieces.

    Args:
        request: The request.
        known: The JSON of messages that has been made before, by the ids of the objects.
    """

    def __init__(self, request: ModelRequest, known: Mapping[int, bytes]) -> None:
        self._known = [known.get(id(message)) for message in request.messages]
        pieces = zip(self._known, request.messages, strict=True)
        self._messages = [piece or json_of(message) for piece, message in pieces]
        self._rest = request.model_dump_json(exclude_none=True, exclude={"messages"}).encode()

    def whole(self) -> bytes:
        return b'{"messages":[%b],%b' % (b",".join(self._messages), self._rest[1:])

    def loaded(self, loaded: dict[bytes, ai.Message]) -> ModelRequest:
        """The request again. Messages that were known come from `loaded`, by their JSON, or are put there."""
        request = ModelRequest.model_validate_json(b'{"messages":[],%b' % self._rest[1:])
        for known, piece in zip(self._known, self._messages, strict=True):
            message = loaded.get(piece) if known else None
            if message is None:
                message = _MESSAGE.validate_json(piece)
                if known:
                    loaded[piece] = message
            request.messages.append(message)
        return request


class ModelCall(pydantic.BaseModel):
    """Input of `llm_stream_activity`: the model, and the number, from 1, of the request in its workflow run."""

    model: str
    number: int
    idle_timeout: timedelta


STOPPED = "stopped"
"""Finish reason of half an answer, whose call was cancelled."""


class ModelReply(pydantic.BaseModel):
    """Result of `llm_stream_activity`. `finish_reason` is None where the model class does not tell it."""

    message: WireMessage
    finish_reason: str | None = None


class LiveText(pydantic.BaseModel):
    """The text of an answer so far: the details of a model activity's heartbeats.

    Heartbeats cost no history. Call `watch()` of bridge/watching.py, and read them with `WorkflowHandle.describe()`,
    from the pending activities. After a failed attempt its last heartbeat stays there for a while: `attempt` tells
    whose it is.
    """

    attempt: int
    text: str
    reasoning: str = ""
    start: int = 0
    """How many characters of the text are left out before this part of it."""


# ── Tool calls ───────────────────────────────────────────────────────────────────────────────────────────


class ToolCall(pydantic.BaseModel):
    """Input of `tool_call_activity`."""

    tool: str
    arguments: dict[str, pydantic.JsonValue]
    result_limit: int | None = pydantic.Field(default=None, exclude_if=lambda limit: limit is None)
    """Bytes that the result may have, if fewer than a payload: the results of many calls share one history."""

    @classmethod
    def of(cls, tool: str, bound: inspect.BoundArguments) -> "ToolCall":
        """The call with these arguments, by name. (`bound.arguments` would nest those of a `**kwargs`.)"""
        arguments = {**dict(zip(bound.signature.parameters, bound.args, strict=False)), **bound.kwargs}
        return cls(tool=tool, arguments=to_jsonable_python(arguments))

    @property
    def summary(self) -> str:
        """The call as people read it: `search(query="news")`."""
        return f"{self.tool}({', '.join(f'{key}={to_json(value).decode()}' for key, value in self.arguments.items())})"


class ToolReply(pydantic.BaseModel):
    """Result of `tool_call_activity`: the return value of the function as JSON, as the model will read it."""

    result: pydantic.JsonValue
