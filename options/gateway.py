"""The AI Gateway as a language model whose answers can be relied on.

The SDK's own `GatewayModel` returns half a message when a stream breaks off or reports an error, splits lines where
JSON has none, and drops the metadata of providers. This one keeps all that comes, in its order, or raises.

A stream is server-sent events, each with one part of the answer as JSON. These parts are ignored, as they say nothing
of the conversation: `stream-start`, `response-metadata`, `raw`, `source`. Parts of unknown types are logged.
"""

import json
import logging
import math
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal, cast, override

import httpx
import pydantic
import vercel_ai_sdk as ai
from httpx_sse import EventSource, SSEError
from pydantic_core import from_json
from vercel_ai_sdk.ai_gateway.errors import GatewayError, create_gateway_error
from vercel_ai_sdk.core.media import data as media_data
from vercel_ai_sdk.core.media import download as media_download

from bridge.failures import MalformedStream, is_final_status
from bridge.wire import (
    Metadata,
    ProviderFile,
    ProviderMessage,
    ProviderPart,
    ProviderReasoning,
    ProviderText,
    ProviderTool,
    encodable,
    metadata_of,
)
from options.http import http_client, proxy_for

DEFAULT_URL = "https://ai-gateway.vercel.sh/v3/ai"

TIMEOUT = httpx.Timeout(300.0, connect=10.0)
"""Seconds. A model may think for minutes before the first word."""

FINAL_CODES = {"insufficient_quota", "billing_error", "context_length_exceeded", "request_too_large"}
FINAL_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "model_not_found",
}

type Part = dict[str, Any]


class IncompleteAnswer(GatewayError):
    """The stream broke off, or reported an error in the middle. Another attempt may do better."""

    is_retryable = True


class RefusedRequest(GatewayError):
    """The gateway says that the same request would be refused again, whatever the HTTP status."""

    is_retryable = False


class GatewayModel(ai.LanguageModel):
    """A model behind the AI Gateway. Reads `AI_GATEWAY_API_KEY` and `AI_GATEWAY_BASE_URL` from the environment.

    Args:
        model: The model's id, as `provider/model`.

    Raises:
        GatewayError: From `stream()`, as in the SDK: the gateway refuses the request, or the answer is not whole.
        MalformedStream: From `stream()`: the answer cannot be read.
        httpx.TransportError: From `stream()`: there is no connection, or it is lost.
        ValueError: From `stream()`: the environment cannot be used, see `check_environment()`.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self.finish_reason: str | None = None
        """Why the latest stream ended, as the model said; None until it has."""

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        """Yield the message each time that it has grown, and in the end the whole message with its usage."""
        self.finish_reason = None
        answer = _Answer()
        try:
            async with aclosing(self._parts(await _request(messages, tools, output_type))) as parts:
                async for part in parts:
                    if answer.add(part):
                        yield answer.message()
        except httpx.TransportError:
            if answer.finish_reason is None:  # or the answer is whole, and paid for
                raise
        if answer.finish_reason is None:
            raise IncompleteAnswer("the model's stream ended before its finish part")
        if answer.finish_reason == "error":
            raise IncompleteAnswer("the model's stream finished with an error")
        self.finish_reason = answer.finish_reason
        yield answer.whole(output_type)

    async def _parts(self, body: dict[str, Any]) -> AsyncGenerator[Part]:
        url, key = environment()
        headers = {
            "Authorization": f"Bearer {key}",
            "ai-gateway-protocol-version": "0.0.1",
            "ai-gateway-auth-method": "api-key",
            "ai-language-model-specification-version": "3",
            "ai-language-model-id": self._model,
            "ai-language-model-streaming": "true",
        }
        async with (
            http_client(url, TIMEOUT) as client,
            client.stream("POST", f"{url}/language-model", json=body, headers=headers) as response,
        ):
            if not response.is_success:
                await response.aread()
                raise _refusal(response)
            response.encoding = "utf-8-sig"  # whatever the header says: server-sent events are UTF-8, with a BOM or not
            try:
                async for event in EventSource(response).aiter_sse():
                    if event.data == "[DONE]":
                        break
                    if event.data:
                        yield _parsed(event.data)
            except SSEError as error:
                raise MalformedStream(str(error)) from error


# ── The environment ──────────────────────────────────────────────────────────────────────────────────────


def environment() -> tuple[str, str]:
    """The gateway's base URL, without a slash at its end, and the key."""
    url = (os.environ.get("AI_GATEWAY_BASE_URL") or DEFAULT_URL).rstrip("/")
    return url, os.environ.get("AI_GATEWAY_API_KEY") or ""


def check_environment() -> None:
    """Find what would make every call fail, before the first one.

    Raises:
        ValueError: The key, the URL or the proxy cannot be used. The message is one line for the user, and does not
            show the key.
    """
    url, key = environment()
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise ValueError("AI_GATEWAY_API_KEY has characters that no HTTP header can hold: copy the key again")
    try:
        usable = httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise ValueError(f"AI_GATEWAY_BASE_URL is no http:// or https:// URL: {url}")
    proxy_for(url)


# ── The request ──────────────────────────────────────────────────────────────────────────────────────────


async def _request(
    messages: list[ai.Message], tools: Sequence[ai.ToolLike] | None, output_type: type[pydantic.BaseModel] | None
) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": [entry for message in messages for entry in await _prompt(message)]}
    if tools:
        body["tools"] = [
            {"type": "function", "name": tool.name, "description": tool.description, "inputSchema": tool.param_schema}
            for tool in tools
        ]
    if output_type is not None:
        schema = output_type.model_json_schema()
        body["responseFormat"] = {"type": "json", "schema": schema, "name": output_type.__name__}
    return body


async def _prompt(message: ai.Message) -> list[dict[str, Any]]:
    """One message as the gateway takes it; the results of its tool calls become a message of their own."""
    if message.role == "system":
        return [{"role": "system", "content": "".join(p.text for p in message.parts if isinstance(p, ai.TextPart))}]
    content: list[Part] = []
    results: list[Part] = []
    for part in message.parts:
        options = metadata_of(part)
        if isinstance(part, ai.ReasoningPart) and part.signature and not options:  # of the SDK's Anthropic model
            options = {"anthropic": {"signature": part.signature}}
        extra = {"providerOptions": options} if options else {}
        match part:
            case ai.TextPart() if part.text or extra:  # providers refuse an empty text
                content.append({"type": "text", "text": part.text, **extra})
            case ai.ReasoningPart():
                content.append({"type": "reasoning", "text": part.text, **extra})
            case ai.FilePart():
                content.append({**await _file(part), **extra})
            case ai.ToolPart():
                call = {"type": "tool-call", "toolCallId": part.tool_call_id, "toolName": part.tool_name}
                by_provider = isinstance(part, ProviderTool) and part.provider_executed
                if part.tool_args or not by_provider:  # or it is only the result of a call in an earlier message
                    executed = {"providerExecuted": True} if by_provider else {}
                    content.append(call | {"input": _arguments(part)} | executed | extra)
                if part.status != "pending":
                    (content if by_provider else results).append(call | {"type": "tool-result"} | _result(part))
    entries = [{"role": message.role, "content": content}] if content else []
    return [*entries, {"role": "tool", "content": results}] if results else entries


async def _file(part: ai.FilePart) -> Part:
    data = part.data
    if isinstance(data, str) and media_data.is_downloadable_url(data):  # the gateway takes no such URLs
        data, _ = await media_download.download(data)
    entry = {
        "type": "file",
        "mediaType": part.media_type,
        "data": media_data.data_to_data_url(data, part.media_type),
    }
    return entry if part.filename is None else {**entry, "filename": part.filename}


def _arguments(part: ai.ToolPart) -> object:
    try:
        return from_json(part.tool_args or "{}", allow_inf_nan=False)
    except ValueError:  # of a provider's own tool, which may take anything
        return part.tool_args


def _result(part: ai.ToolPart) -> Part:
    by_provider = isinstance(part, ProviderTool) and part.provider_executed
    if part.status == "result":
        output: Part = {"type": "json", "value": part.result}
    elif by_provider:
        output = {"type": "error-json", "value": part.result}
    else:
        output = {"type": "error-text", "value": "" if part.result is None else str(part.result)}
    if isinstance(part, ProviderTool) and part.result_metadata:
        return {"output": output, "providerOptions": part.result_metadata}
    return {"output": output}


# ── The answer ───────────────────────────────────────────────────────────────────────────────────────────


def _parsed(data: str) -> Part:
    """One part of the stream. MalformedStream: it is none. GatewayError: it reports an error."""

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        part: Part = json.loads(data, parse_constant=no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise MalformedStream(f"a part is no JSON ({error}): {data[:100]}") from None
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise MalformedStream(f"a part has no type: {data[:100]}")
    if "\\ud" in data.lower():  # half of a surrogate pair, which only a delta may have: the other half is in the next
        part = json.loads(encodable(json.dumps(part, ensure_ascii=False))) | {
            n: part[n] for n in ("delta",) if n in part
        }
    if part["type"] == "error":
        raise _reported(part)
    return part


def _finite(number: str) -> float | None:
    return value if math.isfinite(value := float(number)) else None


class _Answer:
    """The message as far as it has come. Parts stand in the order in which they began."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._start = ai.Message(role="assistant", parts=[])  # for its id, the same for all stages of the message
        self._parts: list[ai.Part] = []
        self._open: dict[tuple[str, str], int] = {}  # by kind and id: where the latest such block is
        self._whole: set[int] = set()  # the tool calls that came whole, not only streamed
        self._usage: ai.Usage | None = None
        self._grown: int | None = None  # the part that has a delta

    def add(self, part: Part) -> bool:
        """Take in a part of the stream. Returns whether the message has changed.

        Raises:
            MalformedStream: It cannot be read.
        """
        if self._grown is not None:
            delta = "args_delta" if isinstance(self._parts[self._grown], ai.ToolPart) else "delta"
            self._change(self._grown, **{delta: None})
            self._grown = None
        kind = part["type"].rpartition("-")[0]
        match part["type"]:
            case "text-start":
                self._begin(kind, part, ProviderText(text="", state="streaming"))
            case "reasoning-start":
                self._begin(kind, part, ProviderReasoning(text="", state="streaming"))
            case "tool-input-start":
                call = ProviderTool(tool_call_id=_id(part, "id"), tool_name=_id(part, "toolName"), tool_args="")
                self._begin(kind, part, call.model_copy(update={"state": "streaming"}))
            case "text-delta" | "reasoning-delta" | "tool-input-delta":
                self._grow(self._block(kind, part), _string(part, "delta", "textDelta"))
            case "text-end" | "reasoning-end" | "tool-input-end":
                self._change(self._block(kind, part), state="done")
            case "tool-call":
                self._call(part)
            case "tool-result":
                self._result(part)
            case "file":
                self._parts.append(ProviderFile(data=_string(part, "data"), media_type=_id(part, "mediaType")))
                self._keep_metadata(len(self._parts) - 1, part)
            case "finish":
                self.finish_reason, self._usage = _finish_reason(part), _usage(part.get("usage"))
                return False
            case "stream-start" | "response-metadata" | "raw" | "source":
                return False
            case unknown:
                logging.getLogger(__name__).warning("the gateway sent a part of an unknown type: %s", unknown)
                return False
        return True

    def message(self) -> ai.Message:
        """The message so far."""
        return ProviderMessage(role="assistant", parts=[*self._parts], id=self._start.id)

    def whole(self, output_type: type[pydantic.BaseModel] | None) -> ai.Message:
        """The message in the end, and its text as structured output where that was asked for.

        Raises:
            ValueError: The text is no such output.
        """
        parts: list[ai.Part] = []
        calls: set[tuple[str, str, str]] = set()
        for i, part in enumerate(self._parts):
            update: dict[str, object] = {} if isinstance(part, ai.FilePart) else {"state": "done"}
            if isinstance(part, ai.ToolPart):
                call = (part.tool_call_id, part.tool_name, _canonical(part.tool_args))
                if call in calls:  # a call that was sent twice is one call
                    continue
                calls.add(call)
            parts.append(self._parts[i].model_copy(update=update))
        text = "".join(part.text for part in parts if isinstance(part, ai.TextPart))
        if output_type is not None and text:
            data = json.loads(text)
            output_type.model_validate(data)
            name = f"{output_type.__module__}.{output_type.__qualname__}"
            parts.append(ai.StructuredOutputPart(data=data, output_type_name=name))
        return ProviderMessage(role="assistant", parts=parts, id=self._start.id, usage=self._usage)

    def _begin(self, kind: str, part: Part, new: ProviderPart) -> None:
        self._open[kind, _id(part, "id")] = len(self._parts)
        self._parts.append(new)
        self._keep_metadata(len(self._parts) - 1, part)

    def _block(self, kind: str, part: Part) -> int:
        i = self._open.get((kind, _id(part, "id")))
        if i is None:
            raise MalformedStream(f"a {part['type']} of a block that was never begun")
        self._keep_metadata(i, part)
        return i

    def _grow(self, i: int, delta: str) -> None:
        part = self._parts[i]
        if isinstance(part, ai.ToolPart):
            self._change(i, tool_args=part.tool_args + delta, args_delta=delta)
        elif isinstance(part, ai.TextPart | ai.ReasoningPart):
            self._change(i, text=part.text + delta, delta=delta)
        self._grown = i

    def _change(self, i: int, **update: object) -> None:
        self._parts[i] = self._parts[i].model_copy(update=update)

    def _call(self, part: Part) -> None:
        """A whole tool call. Normally it was streamed before; then it has the last word on it."""
        id, name = _id(part, "toolCallId"), _id(part, "toolName")
        arguments = part.get("input", "")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        i = self._find(id, lambda i, call: i not in self._whole and call.tool_name == name)
        if i is None:
            i = len(self._parts)
            self._parts.append(ProviderTool(tool_call_id=id, tool_name=name, tool_args=""))
        self._whole.add(i)
        if arguments.strip() in ("", "null"):  # as some models call a tool that has no parameters
            arguments = "{}"
        self._change(i, tool_args=arguments, state="done", provider_executed=part.get("providerExecuted") is True)
        self._keep_metadata(i, part)

    def _result(self, part: Part) -> None:
        """The result of a tool that the provider ran. Where it sends several for a call, the last one counts."""
        id = _id(part, "toolCallId")
        i = self._find(id, lambda i, call: True)
        if i is None:
            i = len(self._parts)
            self._parts.append(ProviderTool(tool_call_id=id, tool_name=_id(part, "toolName"), tool_args=""))
        status: Literal["error", "result"] = "error" if part.get("isError") else "result"
        metadata = part.get("providerMetadata")
        self._change(i, status=status, result=part.get("result"), state="done", provider_executed=True)
        self._change(i, result_metadata=metadata if isinstance(metadata, dict) else {})

    def _find(self, id: str, fits: Callable[[int, ai.ToolPart], bool]) -> int | None:
        """Where the latest tool call with this id is that fits."""
        for i, part in reversed([*enumerate(self._parts)]):
            if isinstance(part, ai.ToolPart) and part.tool_call_id == id and fits(i, part):
                return i
        return None

    def _keep_metadata(self, i: int, part: Part) -> None:
        sent = part.get("providerMetadata")
        if isinstance(sent, dict):
            kept = metadata_of(self._parts[i])
            merged: Metadata = {**kept}
            for provider, values in sent.items():
                before = kept.get(provider)
                merged[provider] = before | values if isinstance(before, dict) and isinstance(values, dict) else values
            self._change(i, provider_metadata=merged)


def _id(part: Part, name: str) -> str:
    return f"{part.get(name) or ''}"


def _string(part: Part, *names: str) -> str:
    """The text under the first of these names that is there; null is an empty text."""
    for name in names:
        if name in part:
            value = part[name]
            if value is None or isinstance(value, str):
                return value or ""
            raise MalformedStream(f"the {name} of a {part['type']} is no text: {json.dumps(value)[:100]}")
    raise MalformedStream(f"a {part['type']} has no {names[0]}")


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments


def _finish_reason(part: Part) -> str:
    reason = part.get("finishReason")
    if isinstance(reason, dict):
        reason = reason.get("unified")
    return reason if reason and isinstance(reason, str) else "other"


def _usage(sent: object) -> ai.Usage | None:
    """The count of tokens. A count that is no number counts as not told; `raw` has it all the same."""
    if not isinstance(sent, dict):
        return None

    def count(*path: str) -> int | None:
        value: object = sent
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        return math.ceil(cast(float, value)) if is_number else None

    def total(nested: str, flat: str) -> int:
        return count(nested, "total") or count(nested) or count(flat) or 0

    return ai.Usage(
        input_tokens=total("inputTokens", "prompt_tokens"),
        output_tokens=total("outputTokens", "completion_tokens"),
        reasoning_tokens=count("outputTokens", "reasoning"),
        cache_read_tokens=count("inputTokens", "cacheRead"),
        cache_write_tokens=count("inputTokens", "cacheWrite"),
        raw=sent,
    )


# ── Errors ───────────────────────────────────────────────────────────────────────────────────────────────


def _refusal(response: httpx.Response) -> GatewayError:
    """The error of an HTTP status."""
    try:
        body = response.json()
    except ValueError:
        body = response.text
    error = _innermost(body)
    status, message = response.status_code, _message(error) or response.reason_phrase
    text = f"HTTP {status}: {message}"
    if not is_final_status(status) and _is_final(error, status):
        return RefusedRequest(text, status_code=status)
    plain = {"message": message, "type": str(error.get("type"))}
    failure = create_gateway_error(
        response_body={"error": plain}, status_code=status, api_key_provided=bool(environment()[1])
    )
    failure.args = (f"HTTP {status}: {failure}",)  # which says more of a key that is refused
    return failure


def _reported(sent: object) -> GatewayError:
    """The error of an `error` part in the stream."""
    error = _innermost(sent)
    status = error.get("statusCode") if isinstance(error.get("statusCode"), int) else None
    text = f"HTTP {status}: {_message(error)}" if status else f"the model's stream reported an error: {_message(error)}"
    return (RefusedRequest if _is_final(error, status) else IncompleteAnswer)(text, status_code=status or 500)


def _innermost(error: object) -> dict[str, Any]:
    """The error itself, with what is said around it and not in it."""
    while isinstance(error, dict) and isinstance(inner := error.get("error"), dict | str):
        around = {name: value for name, value in error.items() if name != "error"}
        error = around | (inner if isinstance(inner, dict) else {"message": inner})
    return error if isinstance(error, dict) else {"message": error}


def _message(error: dict[str, Any]) -> str:
    message = error.get("message")
    return message if isinstance(message, str) else json.dumps(message or error)


def _is_final(error: dict[str, Any], status: int | None) -> bool:
    """Whether the same request would be refused again. The gateway's own word counts first, then what is wrong, then
    the status; the type counts where there is no status."""
    if isinstance(retryable := error.get("isRetryable"), bool):
        return not retryable
    kinds = {str(error.get("type")), str(error.get("code"))}
    if kinds & FINAL_CODES or "prompt is too long" in _message(error).lower():
        return True
    return bool(kinds & FINAL_TYPES) if status is None else is_final_status(status)
