"""Makes a model's message safe to keep: the whole transcript is sent again with every later call."""

import json

import vercel_ai_sdk as ai
from pydantic_core import from_json

from bridge.failures import ToolError
from bridge.wire import ModelRequest, encodable, is_provider_executed


@ai.tool
async def rejected_tool_call(tool: str, arguments: str, problem: str) -> None:
    """Answer a call that no tool can take; `well_formed` puts it in the place of such a call."""
    raise ToolError(problem)


def well_formed(message: ai.Message, request: ModelRequest) -> ai.Message:
    """Return the message as it can be sent again.

    Calls that no offered tool can take (a made-up name, arguments that are no JSON object) become calls of the
    `rejected_tool_call`, which tells the model the problem. Blank arguments become `{}`. Every tool call gets an id
    that is unique in the transcript. Halves of surrogate pairs are joined or replaced.
    """
    offered = [tool.name for tool in request.tools]
    ids = {part.tool_call_id for earlier in request.messages for part in earlier.parts if isinstance(part, ai.ToolPart)}
    parts: list[ai.Part] = []
    for part in message.parts:
        kept = part
        if isinstance(part, ai.TextPart | ai.ReasoningPart):
            kept = part.model_copy(update={"text": encodable(part.text), "delta": None})
        elif isinstance(part, ai.ToolPart) and not is_provider_executed(part):
            kept = _well_formed_call(part, offered)
            kept.tool_call_id = unique_id(kept.tool_call_id, ids)
        parts.append(kept)
    return message.model_copy(update={"parts": parts})


def unique_id(id: str, taken: set[str]) -> str:
    """The id, or a similar one if it is taken. Adds it to the ones that are taken."""
    unique, n = id or "call", 1
    while unique in taken:
        n += 1
        unique = f"{id or 'call'}-{n}"
    taken.add(unique)
    return unique


def _well_formed_call(call: ai.ToolPart, offered: list[str]) -> ai.ToolPart:
    name, arguments, id = map(encodable, (call.tool_name, call.tool_args, call.tool_call_id))
    if arguments.strip() in ("", "null"):  # as some models call a tool that has no parameters
        arguments = "{}"
    if problem := _call_problem(name, arguments, offered):
        rejected = {"tool": name, "arguments": arguments, "problem": problem}
        name, arguments = rejected_tool_call.name, json.dumps(rejected, ensure_ascii=False)
    update = {"tool_call_id": id, "tool_name": name, "tool_args": arguments, "args_delta": None}
    return call.model_copy(update=update)


def _call_problem(name: str, arguments: str, offered: list[str]) -> str | None:
    if name not in offered:
        return f"there is no tool {name!r}; the tools are: {', '.join(offered) or 'none'}"
    try:
        # Stricter than json.loads, which lets NaN and lone surrogates through to the next request.
        value = from_json(arguments, allow_inf_nan=False)
        json.dumps(value, allow_nan=False)  # 1e999 is read as infinity
    except ValueError as error:
        return f"the arguments of {name} are not valid JSON: {error}"
    return None if isinstance(value, dict) else f"the arguments of {name} must be a JSON object"
