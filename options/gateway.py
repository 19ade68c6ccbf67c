"""The AI Gateway as a language model whose answers can be relied on.

The SDK's own `GatewayModel` returns half a message when a stream breaks off or reports an error, splits lines where
JSON has none, and drops the metadata of providers. This one keeps all that comes, in its order, or raises.

A stream is server-sent events, each with one part of the answer as JSON. These parts are ignored, as they say nothing
of the conversation: `stream-start`, `response-metadata`, `raw`, `source`. Parts of unknown types are logged.
"""

import asyncio
import json
import logging
import math
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, override

import httpx
import pydantic
import vercel_ai_sdk as ai
from httpx_sse import EventSource, SSEError
from pydantic_core import from_json
from vercel_ai_sdk.ai_gateway.errors import GatewayError
from vercel_ai_sdk.ai_gateway.protocol import build_request_body, messages_to_v3_prompt

from bridge.failures import MalformedStream, is_final_status
from bridge.messages import unique_id
from bridge.pacing import Pace
from bridge.wire import ProviderTool, encodable, is_provider_executed, message_of, metadata_of, part_of, text_of
from options.http import check_url, http_client

DEFAULT_URL = "https://ai-gateway.vercel.sh/v3/ai"

TIMEOUT = httpx.Timeout(300.0, connect=10.0)
"""Seconds. A model may think for minutes before the first word."""

END_SECONDS = 0.5
"""How long to wait for the end of a stream whose answer is whole. A connection whose stream has not ended is closed."""

FINAL_CODES = {"insufficient_quota", "billing_error", "context_length_exceeded", "request_too_large"}
FINAL_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "model_not_found",
}

type Part = dict[str, Any]


class GatewayFailure(GatewayError):
    """The gateway refuses the request, or the answer is not whole.

    Args:
        message: For people.
        status_code: That of the response, or the one that an error in the stream names.
        is_retryable: Whether another attempt may help.
    """

    retry_after: str | None = None
    """The time of the next attempt, as the gateway names it in `Retry-After`."""

    def __init__(self, message: str, status_code: int = 500, is_retryable: bool = True) -> None:
        super().__init__(message, status_code=status_code)
        self.is_retryable = is_retryable


class GatewayModel(ai.LanguageModel):
    """A model behind the AI Gateway. Reads `AI_GATEWAY_API_KEY` and `AI_GATEWAY_BASE_URL` from the environment.

    Args:
        model: The model's id, as `provider/model`.

    Raises:
        GatewayFailure: From `stream()`: the gateway refuses the request, or the answer is not whole.
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
        body = await build_request_body([], tools, output_type)
        body["prompt"] = [entry for message in messages for entry in await _prompt(message)]
        answer, (url, key) = _Answer(), environment()
        pace = Pace(answer.message)
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
            aclosing(_parts(response)) as parts,
        ):
            async for part in parts:
                if answer.add(part) and await pace.is_time():
                    yield answer.message()
                if answer.finish_reason is not None:  # the answer is whole, and paid for: no matter how the stream ends
                    if not await _has_ended(parts):
                        await client.aclose()
                    break
        if answer.finish_reason in (None, "error"):
            what = "finished with an error" if answer.finish_reason else "ended before its finish part"
            raise GatewayFailure(f"the model's stream {what}")
        self.finish_reason = answer.finish_reason
        yield answer.whole(output_type)


# ── The environment ──────────────────────────────────────────────────────────────────────────────────────


def environment() -> tuple[str, str]:
    """The gateway's base URL, without a slash at its end, and the key."""
    url = (os.environ.get("AI_GATEWAY_BASE_URL") or DEFAULT_URL).rstrip("/")
    return url, os.environ.get("AI_GATEWAY_API_KEY") or ""


def check_environment() -> None:
    """Find a setting that would make every call fail, before the first call.

    Raises:
        ValueError: The key, the URL or the proxy cannot be used. The message is one line for the user, and does not
            show the key.
    """
    url, key = environment()
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise ValueError("AI_GATEWAY_API_KEY has characters that no HTTP header can hold: copy the key again")
    check_url("AI_GATEWAY_BASE_URL", url)


# ── The request ──────────────────────────────────────────────────────────────────────────────────────────


async def _prompt(message: ai.Message) -> list[dict[str, Any]]:
    """One message as the gateway takes it; the results of its tool calls become a message of their own."""
    if message.role == "system":
        return [{"role": "system", "content": text_of(message)}]
    content: list[Part] = []
    results: list[Part] = []
    for part in message.parts:
        options = metadata_of(part)
        if isinstance(part, ai.ReasoningPart) and part.signature and not options:  # of the SDK's Anthropic model
            options = {"anthropic": {"signature": part.signature}}
        extra = {"providerOptions": options} if options else {}
        match part:
            case ai.TextPart() if part.text or extra:  # providers refuse an empty text
                content.append({"type": "text", "text": part.text} | extra)
            case ai.ReasoningPart():
                content.append({"type": "reasoning", "text": part.text} | extra)
            case ai.FilePart():  # the SDK downloads a file with a URL: the gateway takes no URLs
                [entry] = await messages_to_v3_prompt([ai.Message(role="user", parts=[part])])
                content.append(entry["content"][0] | extra)
            case ai.ToolPart():
                by_provider = is_provider_executed(part)
                call = {"type": "tool-call", "toolCallId": part.tool_call_id, "toolName": part.tool_name}
                if part.tool_args or not by_provider:  # or it is only the result of a call in an earlier message
                    executed = {"providerExecuted": True} if by_provider else {}
                    content.append(call | {"input": _arguments(part)} | executed | extra)
                if part.status != "pending":
                    kind = "json" if part.status == "result" else "error-json" if by_provider else "error-text"
                    value = (part.result or "") if kind == "error-text" else part.result
                    result = call | {"type": "tool-result", "output": {"type": kind, "value": value}}
                    options = part.result_metadata if isinstance(part, ProviderTool) else {}
                    (content if by_provider else results).append(
                        result | ({"providerOptions": options} if options else {})
                    )
    entries = [{"role": message.role, "content": content}] if content else []
    return [*entries, {"role": "tool", "content": results}] if results else entries


def _arguments(part: ai.ToolPart) -> object:
    try:
        return from_json(part.tool_args or "{}", allow_inf_nan=False)
    except ValueError:  # of a provider's own tool, which may take anything
        return part.tool_args


# ── The answer ───────────────────────────────────────────────────────────────────────────────────────────


async def _parts(response: httpx.Response) -> AsyncGenerator[Part]:
    """The parts of the stream.

    Raises:
        MalformedStream: A part cannot be read.
        GatewayFailure: The gateway refuses, or reports an error.
    """
    if not response.is_success:
        await response.aread()
        try:
            failure = _failure(response.json(), response.status_code)
        except ValueError:
            failure = _failure(response.text[:300], response.status_code)
        failure.retry_after = response.headers.get("retry-after")
        raise failure
    response.encoding = "utf-8-sig"  # against the header, if need be: server-sent events are UTF-8, with a BOM or not
    try:
        async for event in EventSource(response).aiter_sse():
            if event.data not in ("", "[DONE]"):
                yield _parsed(event.data)
    except SSEError as error:  # a page of a proxy, say, and no answer at all
        raise GatewayFailure(f"the model's answer is no stream: {error}") from error


async def _has_ended(stream: AsyncGenerator[object]) -> bool:
    """Read what is left of a stream. Returns whether that was all: only then can its connection serve the next call."""
    try:
        async with asyncio.timeout(END_SECONDS):
            async for _ in stream:
                pass
    except Exception:
        return False
    return True


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(number: str) -> float | None:
    return value if math.isfinite(value := float(number)) else None


_JSON = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)


def _parsed(data: str) -> Part:
    try:
        part: Part = _JSON.decode(data)
    except (ValueError, RecursionError) as error:
        raise MalformedStream(f"a part is no JSON ({error}): {data[:100]}") from None
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise MalformedStream(f"a part has no type: {data[:100]}")
    if part["type"] == "error":
        raise _failure(part)
    return part


class _Answer:
    """The message so far, as JSON. Its parts are in the order in which they began."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._usage: ai.Usage | None = None
        self._id = ai.Message(role="assistant", parts=[]).id  # the same for all stages of the message
        self._parts: list[Part] = []
        self._open: dict[tuple[str, str], Part] = {}  # by kind and id: the latest such block
        self._growing: Part | None = None  # the block of the latest part, if that was a delta
        self._made: dict[int, ai.Part] = {}  # what `message()` made of the parts that have not changed since

    def add(self, sent: Part) -> bool:
        """Take in a part of the stream. Returns whether the message has changed. MalformedStream: it cannot be read."""
        if self._growing is not None:
            self._growing.pop("delta", None)
            self._growing.pop("args_delta", None)
            self._made.pop(id(self._growing), None)
            self._growing = None
        kind = sent["type"].rpartition("-")[0]
        match sent["type"]:
            case "text-start" | "reasoning-start":
                self._open[kind, _id(sent, "id")] = self._new(sent, type=kind, text="", state="streaming")
            case "tool-input-start":
                self._open[kind, _id(sent, "id")] = self._new_call(sent, "id")
            case "text-delta" | "reasoning-delta" | "tool-input-delta":
                text, delta = ("tool_args", "args_delta") if kind == "tool-input" else ("text", "delta")
                block = self._block(kind, sent)
                block[delta] = _string(sent, "delta", "textDelta")
                block[text] += block[delta]
                self._growing = block
            case "text-end" | "reasoning-end":
                self._block(kind, sent)["state"] = "done"
            case "tool-input-end":
                self._block(kind, sent)  # for its metadata; the whole call has the last word
            case "tool-call":
                self._call(sent)
            case "tool-result":
                self._result(sent)
            case "file":
                self._new(sent, type="file", data=_string(sent, "data"), media_type=_id(sent, "mediaType"))
            case "finish":
                sent = _storable(sent)
                reason = sent.get("finishReason")
                reason = reason.get("unified") if isinstance(reason, dict) else reason
                self.finish_reason = reason if reason and isinstance(reason, str) else "other"
                self._usage = _usage(sent.get("usage"))
                return False
            case "stream-start" | "response-metadata" | "raw" | "source":
                return False
            case unknown:
                logging.getLogger(__name__).info("the gateway sent a part of an unknown type: %s", unknown)
                return False
        return True

    def message(self) -> ai.Message:
        """The message so far. Only what has changed is made anew: there may be a thousand tool calls in it."""
        parts = [self._made.get(id(part)) or self._made.setdefault(id(part), part_of(part)) for part in self._parts]
        return message_of({"role": "assistant", "id": self._id, "parts": parts})

    def whole(self, output_type: type[pydantic.BaseModel] | None) -> ai.Message:
        """The message in the end, with structured output where that was asked for. ValueError: the text is none."""
        ids: set[str] = set()
        for part in self._parts:
            part["state"] = "done"
            if part["type"] == "tool" and not part.get("provider_executed"):
                part["tool_call_id"] = unique_id(part["tool_call_id"], ids)
        self._parts, self._made = _storable(self._parts), {}
        message = self.message()
        message.usage = self._usage
        if output_type is not None and (text := text_of(message)):
            data = json.loads(text)
            output_type.model_validate(data)
            name = f"{output_type.__module__}.{output_type.__qualname__}"
            message.parts.append(ai.StructuredOutputPart(data=data, output_type_name=name))
        return message

    def _new(self, sent: Part, **part: Any) -> Part:
        self._parts.append(part)
        self._change(part, sent)
        return part

    def _new_call(self, sent: Part, id: str) -> Part:
        call = {"tool_call_id": _id(sent, id), "tool_name": _id(sent, "toolName"), "tool_args": ""}
        return self._new(sent, type="tool", state="streaming", **call)

    def _block(self, kind: str, sent: Part) -> Part:
        block = self._open.get((kind, _id(sent, "id")))
        if block is None:
            raise MalformedStream(f"a {sent['type']} of a block that was never begun")
        self._change(block, sent)
        return block

    def _calls(self, sent: Part) -> list[Part]:
        return [part for part in self._parts if part.get("tool_call_id") == _id(sent, "toolCallId")]

    def _call(self, sent: Part) -> None:
        """A whole tool call. Normally it was streamed before; then it has the last word on it."""
        arguments = sent.get("input", "")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if arguments.strip() in ("", "null"):  # as some models call a tool that has no parameters
            arguments = "{}"
        same = [call for call in self._calls(sent) if call["tool_name"] == _id(sent, "toolName")]
        streamed = next((call for call in same if call["state"] == "streaming"), None)
        if any(call["state"] == "done" and _canonical(call["tool_args"]) == _canonical(arguments) for call in same):
            self._parts = [part for part in self._parts if part is not streamed]  # a call that was sent twice is one
            self._made.pop(id(streamed), None)
            return
        call = streamed or self._new_call({**sent, "providerMetadata": None}, "toolCallId")
        call |= {"tool_args": arguments, "state": "done"}
        if sent.get("providerExecuted") is True:
            call["provider_executed"] = True
        self._change(call, sent)

    def _result(self, sent: Part) -> None:
        """The result of a tool that the provider ran. Where it sends several for a call, the last one counts."""
        call = (self._calls(sent) or [self._new_call({**sent, "providerMetadata": None}, "toolCallId")])[-1]
        metadata = sent.get("providerMetadata")
        call |= {"status": "error" if sent.get("isError") else "result", "result": sent.get("result")}
        call |= {"provider_executed": True, "result_metadata": metadata if isinstance(metadata, dict) else {}}
        self._made.pop(id(call), None)

    def _change(self, part: Part, sent: Part) -> None:
        """Keep the metadata that came for a part which changes."""
        self._made.pop(id(part), None)
        metadata = sent.get("providerMetadata")
        for provider, values in metadata.items() if isinstance(metadata, dict) else ():
            kept = part.setdefault("provider_metadata", {})
            before = kept.get(provider)
            kept[provider] = before | values if isinstance(before, dict) and isinstance(values, dict) else values


def _storable[T](value: T) -> T:
    """The value with halves of surrogate pairs joined or replaced, wherever they are."""
    plain: T = json.loads(encodable(json.dumps(value, ensure_ascii=False)))
    return plain


def _id(sent: Part, name: str) -> str:
    return f"{sent.get(name) or ''}"


def _string(sent: Part, *names: str) -> str:
    """The text under the first of these names that is there; null is an empty text."""
    name = next((name for name in names if name in sent), None)
    if name is None:
        raise MalformedStream(f"a {sent['type']} has no {names[0]}")
    if not isinstance(sent[name], str | None):
        raise MalformedStream(f"the {name} of a {sent['type']} is no text: {json.dumps(sent[name])[:100]}")
    return sent[name] or ""


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments


def _usage(sent: object) -> ai.Usage | None:
    """The count of tokens. A count that is no number counts as not told; `raw` has it all the same."""
    if not isinstance(sent, dict):
        return None

    def count(side: str, name: str = "total") -> int | None:
        counts = sent.get(side)
        value = counts.get(name) if isinstance(counts, dict) else counts if name == "total" else None
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
            return math.ceil(value)
        return None

    return ai.Usage(
        input_tokens=count("inputTokens") or count("prompt_tokens") or 0,
        output_tokens=count("outputTokens") or count("completion_tokens") or 0,
        reasoning_tokens=count("outputTokens", "reasoning"),
        cache_read_tokens=count("inputTokens", "cacheRead"),
        cache_write_tokens=count("inputTokens", "cacheWrite"),
        raw=sent,
    )


# ── Errors ───────────────────────────────────────────────────────────────────────────────────────────────


def _failure(sent: object, status: int | None = None) -> GatewayFailure:
    """The error of an HTTP status, or of an `error` part in the stream.

    The gateway's own word on retrying counts first, then the error code, then the status. The type counts where there
    is no status.
    """
    while isinstance(sent, dict) and isinstance(inner := sent.get("error"), dict | str):
        around = {name: value for name, value in sent.items() if name != "error"}
        sent = around | (inner if isinstance(inner, dict) else {"message": inner})
    error = sent if isinstance(sent, dict) else {"message": sent}
    told, code, retryable = error.get("message"), error.get("statusCode"), error.get("isRetryable")
    message = told if isinstance(told, str) else json.dumps(told or error)
    if id := error.get("generationId"):
        message += f" [{id}]"
    status = status or (code if isinstance(code, int) else None)
    if not isinstance(retryable, bool):
        kinds = {str(error.get("type")), str(error.get("code"))}
        final = bool(kinds & FINAL_TYPES) if status is None else is_final_status(status)
        retryable = not (final or kinds & FINAL_CODES or "prompt is too long" in message.lower())
    text = f"HTTP {status}: {message}" if status else f"the model's stream reported an error: {message}"
    return GatewayFailure(text, status or 500, retryable)
