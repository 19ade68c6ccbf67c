"""Open-Meteo, a free weather service, over HTTP: places, forecasts, and clear errors."""

import os

import httpx
import pydantic

from options.http import http_client


class Place(pydantic.BaseModel):
    name: str
    country: str = ""
    latitude: float
    longitude: float
    population: int | None = None


class Places(pydantic.BaseModel):
    results: list[Place] = []


class Current(pydantic.BaseModel):
    temperature_2m: float
    weather_code: int
    wind_speed_10m: float


class Units(pydantic.BaseModel):
    temperature_2m: str
    wind_speed_10m: str


class Forecast(pydantic.BaseModel):
    current: Current
    current_units: Units


TIMEOUT = httpx.Timeout(10.0, connect=5.0)
"""Seconds. Long enough for a slow answer, short enough that a retry still helps the person who waits."""


def geocoding_url() -> str:
    return os.environ.get("OPEN_METEO_GEOCODING_URL") or "https://geocoding-api.open-meteo.com/v1/search"


def forecast_url() -> str:
    return os.environ.get("OPEN_METEO_FORECAST_URL") or "https://api.open-meteo.com/v1/forecast"


class OpenMeteoError(RuntimeError):
    """The service failed, refused, or could not be reached. The `response`, if there was one, tells the activity
    whether the failure may pass, and when to ask again."""

    def __init__(self, message: str, response: httpx.Response | None = None) -> None:
        super().__init__(message)
        self.response = response


async def find(city: str) -> Place:
    """Where a city is. ValueError: there is none of that name. OpenMeteoError: the service does not say."""
    places = await _ask(city, geocoding_url(), {"name": city, "count": 1}, Places)
    if not places.results:
        raise ValueError(f"there is no city called {city!r}")
    return places.results[0]


async def forecast(city: str, place: Place) -> Forecast:
    """The weather there now. OpenMeteoError: the service does not say."""
    parameters: dict[str, str | float] = {
        "latitude": place.latitude,
        "longitude": place.longitude,
        "current": "temperature_2m,weather_code,wind_speed_10m",
    }
    return await _ask(city, forecast_url(), parameters, Forecast)


async def _ask[T: pydantic.BaseModel](city: str, url: str, parameters: dict[str, str | float], format: type[T]) -> T:
    try:
        async with http_client(url, TIMEOUT) as client:
            response = await client.get(url, params=parameters)
    except httpx.TimeoutException as error:
        raise OpenMeteoError(f"no answer about {city!r} in time ({type(error).__name__})") from error
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise OpenMeteoError(f"cannot ask about {city!r}: {str(error) or type(error).__name__}") from error
    if response.is_error:
        problem = f"asking about {city!r} failed with HTTP status {response.status_code}{_reason(response)}"
        raise OpenMeteoError(problem, response)
    try:
        return format.model_validate_json(response.content)
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
