"""The agent's tools: plain functions that ask Open-Meteo, a free weather service, over HTTP.

Nothing here knows Temporal. The model is told a tool's whole docstring. A tool that cannot do its work raises; the
message is written for the model to read, and names the city. `ValueError` says that asking again with the same city is
no use.
"""

import os
from typing import TypedDict

import httpx
import pydantic
import vercel_ai_sdk as ai

# Made once: it takes 30 ms.
TLS = httpx.create_ssl_context()

# Seconds. Long enough for a slow answer, short enough that a retry still helps the one who waits.
TIMEOUT = httpx.Timeout(10.0, connect=5.0)

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


class OpenMeteoError(RuntimeError):
    """The service failed or could not be reached; later it may work."""


@ai.tool
async def get_weather(city: str) -> Weather:
    """Get the current weather in a city.

    Raises:
        ValueError: There is no such city, or the service refuses the request.
        OpenMeteoError: The service cannot be reached, failed, or answered with something else than a forecast.
    """
    place = await _find(city)
    forecast = await _ask(
        city,
        os.environ.get("OPEN_METEO_FORECAST_URL") or "https://api.open-meteo.com/v1/forecast",
        {
            "latitude": place.latitude,
            "longitude": place.longitude,
            "current": "temperature_2m,weather_code,wind_speed_10m",
        },
        _Forecast,
    )
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
    """Get the number of people who live in a city.

    Raises:
        ValueError: There is no such city, its population is not recorded, or the service refuses the request.
        OpenMeteoError: The service cannot be reached, failed, or answered with something else than places.
    """
    place = await _find(city)
    if place.population is None:
        raise ValueError(f"the population of {city!r} is not recorded")
    return Population(city=place.name, country=place.country, population=place.population)


async def _find(city: str) -> _Place:
    url = os.environ.get("OPEN_METEO_GEOCODING_URL") or "https://geocoding-api.open-meteo.com/v1/search"
    places = await _ask(city, url, {"name": city, "count": 1}, _Places)
    if not places.results:
        raise ValueError(f"there is no city called {city!r}")
    return places.results[0]


async def _ask[T: pydantic.BaseModel](city: str, url: str, params: dict[str, str | int | float], answer: type[T]) -> T:
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT, verify=TLS) as client:
            response = await client.get(url, params=params)
    except httpx.TimeoutException as error:
        raise OpenMeteoError(f"no answer about {city!r} in time ({type(error).__name__})") from error
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise OpenMeteoError(f"cannot ask about {city!r}: {str(error) or type(error).__name__}") from error
    if response.is_error:
        # The service refuses what will stay wrong; "too many requests" will not.
        kind = ValueError if response.is_client_error and response.status_code != 429 else OpenMeteoError
        raise kind(f"asking about {city!r} failed with HTTP status {response.status_code}{_reason(response)}")
    try:
        return answer.model_validate_json(response.content)
    except pydantic.ValidationError as error:
        raise OpenMeteoError(f"the answer about {city!r} is malformed: {error.errors()[0]['msg']}") from error


def _reason(response: httpx.Response) -> str:
    try:
        return f": {response.json()['reason']}"
    except (ValueError, LookupError, TypeError):
        return ""
