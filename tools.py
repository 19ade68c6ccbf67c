"""The agent's tools: plain functions that ask Open-Meteo, a free weather service, over HTTP.

The model is told a tool's whole docstring, and the message of an error that a tool raises.
"""

import os
from typing import TypedDict

import httpx
import pydantic
import vercel_ai_sdk as ai

from options.http import http_client


class Weather(TypedDict):
    """Temperature and wind are text with the service's unit, which a model reads better than a bare number."""

    city: str
    country: str
    temperature: str
    conditions: str
    wind: str


class Population(TypedDict):
    city: str
    country: str
    population: int


@ai.tool
async def get_weather(city: str) -> Weather:
    """Get the current weather in a city."""
    place = await _find(city)
    query: dict[str, str | float] = {
        "latitude": place.latitude,
        "longitude": place.longitude,
        "current": "temperature_2m,weather_code,wind_speed_10m",
    }
    forecast = await _ask(city, forecast_url(), query, _Forecast)
    current, units = forecast.current, forecast.current_units
    return Weather(
        city=place.name,
        country=place.country,
        temperature=f"{current.temperature_2m:g} {units.temperature_2m}",
        conditions=WEATHER_CODES.get(current.weather_code, f"weather code {current.weather_code}"),
        wind=f"{current.wind_speed_10m:g} {units.wind_speed_10m}",
    )


@ai.tool
async def get_population(city: str) -> Population:
    """Get the number of people who live in a city."""
    place = await _find(city)
    if place.population is None:
        raise ValueError(f"the population of {city!r} is not recorded")
    return Population(city=place.name, country=place.country, population=place.population)


# ── Open-Meteo ───────────────────────────────────────────────────────────────────────────────────────────


class _Place(pydantic.BaseModel):
    name: str
    country: str = ""
    latitude: float
    longitude: float
    population: int | None = None


class _Places(pydantic.BaseModel):
    results: list[_Place] = []


class _Current(pydantic.BaseModel):
    temperature_2m: float
    weather_code: int
    wind_speed_10m: float


class _Units(pydantic.BaseModel):
    temperature_2m: str
    wind_speed_10m: str


class _Forecast(pydantic.BaseModel):
    current: _Current
    current_units: _Units


TIMEOUT = httpx.Timeout(10.0, connect=5.0)
"""Seconds. Long enough for a slow answer, short enough that a retry still helps whoever waits."""


def geocoding_url() -> str:
    return os.environ.get("OPEN_METEO_GEOCODING_URL") or "https://geocoding-api.open-meteo.com/v1/search"


def forecast_url() -> str:
    return os.environ.get("OPEN_METEO_FORECAST_URL") or "https://api.open-meteo.com/v1/forecast"


class OpenMeteoError(RuntimeError):
    """The service failed, refused, or could not be reached. `status_code` is that of its answer, if there was one."""

    def __init__(self, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.status_code = status_code


async def _find(city: str) -> _Place:
    places = await _ask(city, geocoding_url(), {"name": city, "count": 1}, _Places)
    if not places.results:
        raise ValueError(f"there is no city called {city!r}")
    return places.results[0]


async def _ask[T: pydantic.BaseModel](city: str, url: str, query: dict[str, str | float], answer: type[T]) -> T:
    try:
        async with http_client(url, TIMEOUT) as client:
            response = await client.get(url, params=query)
    except httpx.TimeoutException as error:
        raise OpenMeteoError(f"no answer about {city!r} in time ({type(error).__name__})") from error
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise OpenMeteoError(f"cannot ask about {city!r}: {str(error) or type(error).__name__}") from error
    status = response.status_code
    if response.is_error:
        raise OpenMeteoError(f"asking about {city!r} failed with HTTP status {status}{_reason(response)}", status)
    try:
        return answer.model_validate_json(response.content)
    except pydantic.ValidationError as error:
        raise OpenMeteoError(f"the answer about {city!r} is malformed: {error.errors()[0]['msg']}") from error


def _reason(response: httpx.Response) -> str:
    try:
        return f": {response.json()['reason']}"
    except (ValueError, LookupError, TypeError):
        return ""


# The WMO code table 4677, as far as Open-Meteo uses it.
WEATHER_CODES = {
    0: "clear sky",
    1: "mainly clear",
    2: "partly cloudy",
    3: "overcast",
    45: "fog",
    48: "rime fog",
    51: "light drizzle",
    53: "drizzle",
    55: "dense drizzle",
    56: "light freezing drizzle",
    57: "freezing drizzle",
    61: "light rain",
    63: "rain",
    65: "heavy rain",
    66: "light freezing rain",
    67: "freezing rain",
    71: "light snow",
    73: "snow",
    75: "heavy snow",
    77: "snow grains",
    80: "light rain showers",
    81: "rain showers",
    82: "violent rain showers",
    85: "light snow showers",
    86: "snow showers",
    95: "thunderstorm",
    96: "thunderstorm with light hail",
    99: "thunderstorm with hail",
}
