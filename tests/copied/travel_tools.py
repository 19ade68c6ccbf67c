"""Tools of another project: one with nested arguments, one that a person has to allow, one that must not run twice."""

from datetime import date
from pathlib import Path

import pydantic
import vercel_ai_sdk as ai


class Leg(pydantic.BaseModel):
    start: str
    end: str
    day: date


class Options(pydantic.BaseModel):
    window_seat: bool = False
    luggage: list[str] = []


@ai.tool
async def quote(legs: list[Leg], options: Options | None = None) -> dict[str, object]:
    """Say what a trip costs."""
    extras = options or Options()
    price = sum(90 + 10 * leg.day.isoweekday() for leg in legs) + 25 * len(extras.luggage)
    return {"price": price, "last_day": max(leg.day for leg in legs)}


@ai.tool
async def book(price: int) -> str:
    """Book the trip. Costs money, so a person has to allow it."""
    _note(f"booked for {price}")
    return "booked"


@ai.tool
async def charge(price: int) -> str:
    """Charge the card. Doing it twice is worse than not knowing whether it was done."""
    _note(f"charged {price}")
    raise ConnectionError("the line went dead")


def _note(what: str) -> None:
    with Path("done.txt").open("a") as file:
        file.write(f"{what}\n")
