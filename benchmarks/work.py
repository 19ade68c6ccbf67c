"""The work that all variants do: so many turns of one model call and two tool calls at once, then an answer.

The model and the tools take no time. Standard library only, since this is loaded in the environment of each variant.
"""

import json
from dataclasses import dataclass

TOOLS = ("get_weather", "get_population")
RESULT_BYTES = 2000
ANSWER = "That is all there is to say about these cities."
TOKENS_IN, TOKENS_OUT = 1000, 50

# The words of the sample's system prompt, in workflow.py.
INSTRUCTIONS = """\
You answer questions about the weather in cities and about how many people live there.
Look everything up with the tools, several cities at once where you can; never guess a number.
When a tool fails, say so and answer what you can. Be brief."""


def query(turns: int) -> str:
    """What the user asks."""
    return f"Tell me about {turns} cities."


@dataclass(frozen=True)
class Call:
    """A tool call of the model. The arguments are JSON, as models send them."""

    id: str
    tool: str
    city: str

    @property
    def arguments(self) -> str:
        return json.dumps({"city": self.city})


def next_calls(query: str, latest_call: str | None) -> list[Call]:
    """The model: what to call next, by the id of the call that was answered last. Nothing when it is time to answer."""
    return calls_of_turn(1 + int(latest_call.split("-")[1]) if latest_call else 1, turns=int(query.split()[3]))


def calls_of_turn(number: int, turns: int) -> list[Call]:
    return [Call(f"call-{number:03}-{tool}", tool, f"City {number:03}") for tool in TOOLS] if number <= turns else []


def look_up(tool: str, city: str) -> str:
    """The tools: some text of `RESULT_BYTES`."""
    sentence = f"What {tool} has to say of {city} is said at some length. "
    return (sentence * (RESULT_BYTES // len(sentence) + 1))[:RESULT_BYTES]


async def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return look_up("get_weather", city)


async def get_population(city: str) -> str:
    """Get the number of people who live in a city."""
    return look_up("get_population", city)


def activities(turns: int) -> int:
    """How many activities the work is."""
    return turns * (1 + len(TOOLS)) + 1
