"""The agent's tools: plain functions that ask Open-Meteo, a free weather service.

The model reads a tool's docstring, and the message of an error that a tool raises. It is told of a final error at
once: a `ValueError`, a bug or most of HTTP 4xx. Any other error is tried again first, five times in all. Mind that
`JSONDecodeError` is a `ValueError`: where another try may help, raise a `RuntimeError`.
"""

from typing import TypedDict

import vercel_ai_sdk as ai

import open_meteo


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
    place = await open_meteo.find(city)
    forecast = await open_meteo.forecast(city, place)
    current, units = forecast.current, forecast.current_units
    return Weather(
        city=place.name,
        country=place.country,
        temperature=f"{current.temperature_2m:g} {units.temperature_2m}",
        conditions=open_meteo.WEATHER_CODES.get(current.weather_code, f"weather code {current.weather_code}"),
        wind=f"{current.wind_speed_10m:g} {units.wind_speed_10m}",
    )


@ai.tool
async def get_population(city: str) -> Population:
    """Get the number of people who live in a city."""
    place = await open_meteo.find(city)
    if place.population is None:
        raise ValueError(f"the population of {city!r} is not recorded")
    return Population(city=place.name, country=place.country, population=place.population)
