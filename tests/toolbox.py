"""Tools that the tests need beside the sample's own."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import pydantic
import vercel_ai_sdk as ai
from temporalio.common import RetryPolicy

from durable import temporal_tool


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


QUICKLY = RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=2)
TOOLS: list[ai.Tool[..., Any]] = [
    temporal_tool(count_legs, start_to_close_timeout=timedelta(seconds=77)),
    temporal_tool(break_down, retry_policy=QUICKLY),
    temporal_tool(big_result, heartbeat_timeout=None),
    temporal_tool(not_json),
    temporal_tool(noise),
    temporal_tool(open_door, approval=True),
    temporal_tool(
        wait_for_ever,
        start_to_close_timeout=timedelta(seconds=1),
        retry_policy=RetryPolicy(maximum_attempts=1),
    ),
]


@ai.tool
async def not_offered() -> str:
    """Registered, but given to no agent."""
    raise AssertionError("the model was not offered this tool")
