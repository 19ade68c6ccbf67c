"""Tools that the tests need beside the sample's own."""

import asyncio
import random
import time
from datetime import timedelta
from typing import Any

import pydantic
import vercel_ai_sdk as ai
from temporalio import activity
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

from durable import temporal_tool
from options.approvals import ask_a_person


class Leg(pydantic.BaseModel):
    start: str
    end: str


ATTEMPTS: list[str] = []


@ai.tool
async def count_legs(legs: list[Leg], note: str | None = None) -> dict[str, object]:
    """Count the legs of a trip."""
    return {"legs": len(legs), "ends": [leg.end for leg in legs], "note": note}


@ai.tool
async def break_down(reason: str) -> None:
    """Fail, every time."""
    ATTEMPTS.append(reason)
    raise RuntimeError(reason)


@ai.tool
async def big_result(size: int) -> str:
    """Return a text of that many bytes."""
    return "x" * size


@ai.tool
async def noise(size: int) -> str:
    """Return a text of that many bytes which nothing can compress much."""
    return random.Random(size).randbytes(size * 3 // 4).hex()[:size]


@ai.tool
async def not_json() -> float:
    """Return something that JSON does not have."""
    return float("nan")


OPENED: list[str] = []


@ai.tool
async def open_door(door: str) -> str:
    """Open a door. Not without a person's approval."""
    OPENED.append(door)
    return f"{door} is open"


@ai.tool
async def wait_for_ever() -> None:
    """Wait, and never return."""
    await asyncio.Event().wait()


@ai.tool
async def gather_facts(names: list[str]) -> None:
    """Look several things up at once, in vain."""
    ATTEMPTS.extend(names)

    async def look_up(name: str) -> None:
        raise ValueError(f"there is no {name}")

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(look_up(name))


@ai.tool
async def refuse_together() -> None:
    """Be refused, in a task of its own."""
    ATTEMPTS.append("refused together")

    async def be_refused() -> None:
        raise ApplicationError("no such card", non_retryable=True)

    async with asyncio.TaskGroup() as group:
        group.create_task(be_refused())


@ai.tool
async def misread() -> object:
    """Look for something that is not there."""
    return {"a": 1}["population"]


ERRORS: dict[str, BaseException] = {}
"""The errors that `go_wrong` raises, by kind."""


@ai.tool
async def go_wrong(kind: str) -> None:
    """Raise an error of a kind."""
    ATTEMPTS.append(kind)
    raise ERRORS[kind]


async def any_arguments(first: int = 0, **rest: Any) -> dict[str, object]:
    return {"first": first, **rest}


# What the SDK makes of a tool of an MCP server, and `@ai.tool` cannot.
OPEN_TOOL = ai.Tool(
    any_arguments,
    schema=ai.ToolSchema(name="any_arguments", description="", param_schema={"type": "object"}, return_type=None),
)


@ai.tool
async def keep_quiet() -> None:
    """Do something, and return nothing."""


DUG: list[str] = []


@ai.tool
async def dig(place: str) -> None:
    """Dig a hole there, which takes for ever, and must not be begun twice."""
    DUG.append(place)
    await asyncio.Event().wait()


@ai.tool
async def block(seconds: float) -> int:
    """Block the event loop, as no tool should, at the first attempt. Returns the attempt."""
    attempt = activity.info().attempt
    if attempt == 1:
        time.sleep(seconds)  # noqa: ASYNC251
    return attempt


QUICKLY = RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=2)
TOOLS: list[ai.Tool[..., Any]] = [
    temporal_tool(count_legs, start_to_close_timeout=timedelta(seconds=77)),
    temporal_tool(break_down, retry_policy=QUICKLY),
    temporal_tool(big_result, heartbeat_timeout=None),
    temporal_tool(not_json),
    temporal_tool(noise),
    temporal_tool(open_door, before=ask_a_person),
    temporal_tool(
        wait_for_ever,
        start_to_close_timeout=timedelta(seconds=1),
        retry_policy=RetryPolicy(maximum_attempts=1),
    ),
    temporal_tool(gather_facts, retry_policy=QUICKLY),
    temporal_tool(refuse_together, retry_policy=QUICKLY),
    temporal_tool(misread),
    temporal_tool(OPEN_TOOL),
    temporal_tool(go_wrong, retry_policy=QUICKLY),
    temporal_tool(keep_quiet),
    temporal_tool(dig, retry_policy=RetryPolicy(maximum_attempts=1)),
    temporal_tool(block, heartbeat_timeout=timedelta(seconds=1), retry_policy=QUICKLY),
]


@ai.tool
async def not_offered() -> str:
    """Registered, but given to no agent."""
    raise AssertionError("the model was not offered this tool")
