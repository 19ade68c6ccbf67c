"""An MCP server over stdio, for mcp_tools.py to start: a stand-in for any of the servers that you can get."""

from typing import TypedDict

from mcp.server.fastmcp import FastMCP

PEOPLE = {"Tokyo": 9733276, "Paris": 2138551}

server = FastMCP("places", log_level="WARNING")


class Population(TypedDict):
    city: str
    population: int


@server.tool()
async def get_population(city: str) -> Population:
    """Get the number of people who live in a city."""
    if city not in PEOPLE:
        raise ValueError(f"there is no city called {city!r}")
    return Population(city=city, population=PEOPLE[city])


if __name__ == "__main__":
    server.run()
