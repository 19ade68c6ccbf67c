"""The work of an agent under load: a slow model call that asks for a tool, the tool, a slow model call that answers.

The standard library and httpx only, since this is loaded in the environment of each variant.
"""

import functools
import json
import os
from dataclasses import dataclass
from typing import Any

import httpx

INSTRUCTIONS = "You tell how many people live in cities. Look it up with the tool, and be brief."
TOOL = "get_population"
TOKEN = "words "
MODEL = "load/model"

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def city(agent: int) -> str:
    """Each agent asks about a city of its own, which also tells the gateway whose call it is."""
    return f"City {agent:05}"


def query(agent: int) -> str:
    return f"How many people live in {city(agent)}?"


def slots() -> int | None:
    """How many activities a worker does at once, as the driver wants it. None: Temporal's default, which is 100."""
    return int(number) if (number := os.environ.get("LOAD_SLOTS")) else None


@dataclass(frozen=True)
class Reply:
    """The model's answer: text, or a tool call."""

    text: str
    call_id: str = ""
    arguments: str = ""
    """JSON."""


@functools.cache
def shared_client() -> httpx.AsyncClient:
    """One client for all calls, with no limit on its connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(300, connect=60))


async def ask_model(question: str, result: object = None) -> Reply:
    """One model call, with the result of the tool if there is one: the least that reads the gateway's stream."""
    prompt: list[dict[str, Any]] = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": [{"type": "text", "text": question}]},
    ]
    if result is not None:
        call = {"toolCallId": "call-1", "toolName": TOOL}
        output = {"type": "json", "value": result}
        prompt += [
            {"role": "assistant", "content": [{"type": "tool-call", **call, "input": {}}]},
            {"role": "tool", "content": [{"type": "tool-result", **call, "output": output}]},
        ]
    body = {"prompt": prompt, "tools": [{"type": "function", "name": TOOL, "description": "", "inputSchema": SCHEMA}]}
    headers = {
        "Authorization": f"Bearer {os.environ['AI_GATEWAY_API_KEY']}",
        "ai-language-model-id": MODEL,
        "ai-language-model-streaming": "true",
    }
    url = f"{os.environ['AI_GATEWAY_BASE_URL']}/language-model"
    deltas, tool_call, finished = list[str](), None, False
    async with shared_client().stream("POST", url, json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            part = json.loads(line[6:])
            match part["type"]:
                case "text-delta":
                    deltas.append(part["delta"])
                case "tool-call":
                    tool_call = Reply("", part["toolCallId"], part["input"])
                case "finish":
                    finished = True  # but read on: the connection can be used again only if nothing is left in it
    if not finished:
        raise RuntimeError("the stream ended before its finish part")
    return tool_call or Reply("".join(deltas))


async def look_up(city: str, client: httpx.AsyncClient | None = None) -> dict[str, Any]:
    """The tool: one request."""
    url = os.environ["OPEN_METEO_GEOCODING_URL"]
    response = await (client or shared_client()).get(url, params={"name": city, "count": 1})
    response.raise_for_status()
    place = response.json()["results"][0]
    return {"city": place["name"], "country": place["country"], "population": place["population"]}
