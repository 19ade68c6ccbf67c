"""A demo of the two services for people without a key: a rule-based model and sample data, over real HTTP on loopback.

The model only looks for city names and a few words; the figures are a fixed sample. The rest of the program does not
know the difference: it is given other URLs.
"""

import asyncio
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

# ── The model and the data ───────────────────────────────────────────────────────────────────────────────

NOTICE = "OFFLINE DEMO: the model is a small rule-based stand-in and the data is a fixed sample."

SECONDS_PER_TOKEN = 0.01

# name: country, latitude, longitude, timezone, population, temperature in °C, WMO weather code, wind in km/h
CITIES: dict[str, tuple[str, float, float, str, int | None, float, int, float]] = {
    "Beijing": ("China", 39.9075, 116.3972, "Asia/Shanghai", 18960744, 21.4, 1, 9.7),
    "Berlin": ("Germany", 52.5244, 13.4105, "Europe/Berlin", 3426354, 14.8, 61, 17.6),
    "Cairo": ("Egypt", 30.0626, 31.2497, "Africa/Cairo", 9606916, 31.2, 0, 14.0),
    "Delhi": ("India", 28.6519, 77.2315, "Asia/Kolkata", 10927986, 33.5, 2, 8.3),
    "Istanbul": ("Türkiye", 41.0138, 28.9497, "Europe/Istanbul", 15701602, 22.7, 1, 19.1),
    "Lagos": ("Nigeria", 6.4541, 3.3947, "Africa/Lagos", 15388000, 28.9, 80, 11.5),
    "London": ("United Kingdom", 51.5085, -0.1257, "Europe/London", 8961989, 12.3, 3, 15.8),
    "Los Angeles": ("United States", 34.0522, -118.2437, "America/Los_Angeles", 3898747, 22.5, 0, 9.4),
    "Mexico City": ("Mexico", 19.4285, -99.1277, "America/Mexico_City", 12294193, 19.8, 95, 7.2),
    "Moscow": ("Russia", 55.7522, 37.6156, "Europe/Moscow", 10381222, 4.6, 71, 12.9),
    "Mumbai": ("India", 19.0728, 72.8826, "Asia/Kolkata", 12691836, 30.1, 63, 16.4),
    "New York": ("United States", 40.7143, -74.006, "America/New_York", 8804190, 17.2, 2, 13.3),
    "Paris": ("France", 48.8534, 2.3488, "Europe/Paris", 2138551, 15.1, 51, 10.8),
    "São Paulo": ("Brazil", -23.5475, -46.6361, "America/Sao_Paulo", 12400232, 24.6, 81, 8.8),
    "Sydney": ("Australia", -33.8678, 151.2073, "Australia/Sydney", 5557233, 18.9, 1, 21.3),
    "Tokyo": ("Japan", 35.6895, 139.6917, "Asia/Tokyo", 9733276, 18.4, 2, 12.1),
    "Vostok Station": ("Antarctica", -78.4645, 106.8339, "Antarctica/Vostok", None, -62.7, 77, 24.5),
}

Part = dict[str, Any]
"""One part of the gateway's stream, as it goes over the wire."""


# ── The demo model ───────────────────────────────────────────────────────────────────────────────────────


async def demo_model(body: dict[str, Any]) -> AsyncIterator[Part]:
    """Call the tools for the cities in the query; when their results are there, write the answer from them."""
    before, turn = _turns(body["prompt"])
    asked = {
        part["toolCallId"]: (part["toolName"], str(part["input"].get("city", "?")))
        for part in _parts(turn, "assistant")
        if part["type"] == "tool-call"
    }
    cities = _cities(" ".join(part["text"] for part in _parts(before, "user")))
    wanted = list[tuple[str, str]]()
    looked_up = max((i for i, message in enumerate(turn) if message["role"] == "tool"), default=-1)
    for part in _parts(turn[looked_up + 1 :], "user"):
        wanted += _calls(part["text"], cities, [tool["name"] for tool in body.get("tools", ())])
    calls = [call for call in dict.fromkeys(wanted) if call not in asked.values()]
    yield {"type": "stream-start", "warnings": []}
    if calls:
        first = 1 + sum(part["type"] == "tool-call" for part in _parts(body["prompt"], "assistant"))
        for i, (name, city) in enumerate(calls, first):
            for part in tool_call(f"call_{i}", name, {"city": city}):
                yield part
        text, reason = "", "tool-calls"
    else:
        text, reason = _answer(_parts(turn, "tool"), asked), "stop"
        yield {"type": "text-start", "id": "1"}
        for token in re.findall(r"\s*\S+", text):
            await asyncio.sleep(SECONDS_PER_TOKEN)
            yield {"type": "text-delta", "id": "1", "delta": token}
        yield {"type": "text-end", "id": "1"}
    yield finish(reason, tokens_in=len(json.dumps(body)) // 4, tokens_out=len(text) // 4 + 20 * len(calls))


def _turns(prompt: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The prompt, up to the latest answer and after it."""
    ends = [
        i + 1
        for i, message in enumerate(prompt)
        if message["role"] == "assistant" and not any(part["type"] == "tool-call" for part in message["content"])
    ]
    end = max(ends, default=0)
    return prompt[:end], prompt[end:]


def _parts(messages: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    return [part for message in messages if message["role"] == role for part in message["content"]]


def tool_call(id: str, name: str, arguments: object) -> Iterator[Part]:
    """The parts of one tool call: streamed, then whole. Arguments that are a string go out as they are."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    yield {"type": "tool-input-start", "id": id, "toolName": name}
    yield {"type": "tool-input-delta", "id": id, "delta": text}
    yield {"type": "tool-input-end", "id": id}
    yield {"type": "tool-call", "toolCallId": id, "toolName": name, "input": text}


def finish(reason: str, tokens_in: int = 0, tokens_out: int = 0) -> Part:
    """The part that ends a stream."""
    usage = {"inputTokens": {"total": tokens_in}, "outputTokens": {"total": tokens_out}}
    return {"type": "finish", "finishReason": {"unified": reason}, "usage": usage}


def _calls(query: str, cities: list[str], tools: list[str]) -> list[tuple[str, str]]:
    """What to look up for a query, which may mean the cities that were named before it."""
    wanted = []
    if re.search(r"\b(weather|temperature|warm|cold|hot|rain|snow|sun|wind|forecast)", query, re.I):
        wanted.append("get_weather")
    if re.search(r"\b(population|people|inhabitants|big|large|lives?\b)", query, re.I):
        wanted.append("get_population")
    wanted = wanted or ["get_weather", "get_population"]
    return [(name, city) for city in _cities(query) or cities for name in wanted if name in tools]


def _cities(query: str) -> list[str]:
    found = {}
    for city in CITIES:
        if match := re.search(rf"\b{re.escape(city)}\b", query, re.I):
            found[match.start()] = city
            query = query[: match.start()] + " " * len(city) + query[match.end() :]
    # Anything else in a place for a name and written like one: the tools will say whether it exists.
    name = r"[^\W\d_a-z][\w'.-]*"
    for match in re.finditer(rf"(?:\b(?:in|of|for|at|about|and|or|has|is)\s|,)\s*({name}(?:\s{name})*)", query):
        found[match.start(1)] = match[1].rstrip(".")
    return [city for _, city in sorted(found.items())]


def _answer(results: list[dict[str, Any]], asked: dict[str, tuple[str, str]]) -> str:
    if not results:
        return (
            "I am a demo model: I only know how to look up the weather and the population of a city. "
            "Name one, for example: What is the weather in Tokyo?"
        )
    lines: dict[str, list[str]] = {}
    for result in results:
        _, city = asked.get(result["toolCallId"], ("", "?"))
        value = result["output"]["value"]
        facts = lines.setdefault(city, [])
        if result["output"]["type"] == "error-text":
            facts.append(re.sub(r"^\w+: \w+ failed: ", "", str(value)))
        elif "temperature" in value:
            facts.append(f"{value['temperature']}, {value['conditions']}, wind {value['wind']}")
        elif "population" in value:
            facts.append(f"population {value['population']:,}")
        else:
            facts.append(json.dumps(value))
    return "\n".join(f"{city}: {'; '.join(dict.fromkeys(facts))}." for city, facts in lines.items())


# ── The services ─────────────────────────────────────────────────────────────────────────────────────────


def gateway_error(status: int, type: str, message: str) -> JSONResponse:
    """An error in the AI Gateway's format."""
    return JSONResponse({"error": {"message": message, "type": type}}, status)


def stream(parts: AsyncIterator[Part]) -> StreamingResponse:
    """Server-sent events, in the AI Gateway's format."""

    async def lines() -> AsyncIterator[str]:
        async for part in parts:
            yield f"data: {json.dumps(part)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def language_model(request: Request) -> Response:
    if not request.headers.get("authorization", "").removeprefix("Bearer").strip():
        return gateway_error(401, "authentication_error", "no API key")
    if not request.headers.get("ai-language-model-id"):
        return gateway_error(400, "invalid_request_error", "no ai-language-model-id")
    return stream(demo_model(await request.json()))


async def geocoding(request: Request) -> Response:
    query = request.query_params
    if "name" not in query:
        return _open_meteo_error("Parameter 'name' must be set.")
    matches = [name for name in CITIES if query["name"].strip().casefold() == name.casefold()]
    results = []
    for name in matches[: int(query.get("count", 10))]:
        country, latitude, longitude, timezone, population, *_ = CITIES[name]
        place = {"name": name, "country": country, "latitude": latitude, "longitude": longitude, "timezone": timezone}
        results.append(place if population is None else {**place, "population": population})
    return JSONResponse({"results": results, "generationtime_ms": 0.1} if results else {"generationtime_ms": 0.1})


async def forecast(request: Request) -> Response:
    try:
        at = float(request.query_params["latitude"]), float(request.query_params["longitude"])
    except (KeyError, ValueError):
        return _open_meteo_error("Parameters 'latitude' and 'longitude' must be numbers.")
    for _, latitude, longitude, _, _, temperature, code, wind in CITIES.values():
        if at == (latitude, longitude):
            units = {"time": "iso8601", "temperature_2m": "°C", "weather_code": "wmo code", "wind_speed_10m": "km/h"}
            values = {"temperature_2m": temperature, "weather_code": code, "wind_speed_10m": wind}
            asked = request.query_params.get("current", "").split(",")
            return JSONResponse(
                {
                    "latitude": latitude,
                    "longitude": longitude,
                    "current_units": {k: v for k, v in units.items() if k == "time" or k in asked},
                    "current": {"time": "2026-01-01T12:00", **{k: v for k, v in values.items() if k in asked}},
                }
            )
    return _open_meteo_error("No sample data for these coordinates.")


def _open_meteo_error(reason: str) -> JSONResponse:
    return JSONResponse({"error": True, "reason": reason}, 400)


ROUTES = [
    Route("/v3/ai/language-model", language_model, methods=["POST"]),
    Route("/v1/search", geocoding),
    Route("/v1/forecast", forecast),
]


@contextmanager
def serve(routes: list[Route] = ROUTES) -> Iterator[str]:
    """Serve both services on a free loopback port, in a thread of their own, while the body runs.

    Yields:
        The base URL, `http://127.0.0.1:PORT`.
    """
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    # Set by hand, since asyncio passes over a socket made without naming TCP: answers would come 40 ms late.
    sockets[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sockets[0].listen()  # connections wait from now on, so there is no need to wait for the thread
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(1)  # a stream that somebody reads may hold it for longer; the port is closed


def environment(url: str) -> dict[str, str]:
    """The environment that sends model and tools to the stand-ins at `url`."""
    return {
        "AI_GATEWAY_API_KEY": "offline-demo",
        "AI_GATEWAY_BASE_URL": f"{url}/v3/ai",
        "OPEN_METEO_GEOCODING_URL": f"{url}/v1/search",
        "OPEN_METEO_FORECAST_URL": f"{url}/v1/forecast",
    }
