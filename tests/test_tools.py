"""What a caller gets from the tools: Open-Meteo's figures, or an error that names the city."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import vercel_ai_sdk as ai
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import open_meteo
from app import demo
from tools import get_population, get_weather

AnyTool = ai.Tool[..., Any]
Fault = Callable[[str, str], None]

GEOCODING = "OPEN_METEO_GEOCODING_URL"
FORECAST = "OPEN_METEO_FORECAST_URL"

ANSWERS = {
    "bad-request": (400, '{"error": true, "reason": "Value out of range."}'),
    "limit": (429, '{"error": true, "reason": "Hourly limit exceeded."}'),
    "crash": (500, "[]"),
    "overload": (503, "<html>Service Unavailable</html>"),
    "html": (200, "<html>Please log in</html>"),
    "list": (200, "[]"),
    "cut": (200, '{"results": [{"name": "Tokyo", "lati'),
    "fields-missing": (200, '{"results": [{"name": "Tokyo"}], "current": {"temperature_2m": 20.5}}'),
    "nulls": (200, '{"results": null, "current": null, "current_units": null}'),
    "no-results-key": (200, '{"generationtime_ms": 0.1}'),
    "empty-results": (200, '{"results": []}'),
    "frogs": (
        200,
        '{"current": {"temperature_2m": 70.1, "weather_code": 42, "wind_speed_10m": 3},'
        ' "current_units": {"temperature_2m": "°F", "wind_speed_10m": "mph"}}',
    ),
}

both_tools = pytest.mark.parametrize("tool", [get_weather, get_population], ids=["weather", "population"])
both_services = pytest.mark.parametrize(
    ("tool", "service"), [(get_population, GEOCODING), (get_weather, FORECAST)], ids=["geocoding", "forecast"]
)


async def answer(request: Request) -> Response:
    status, body = ANSWERS[request.path_params["name"]]
    return Response(body, status)


@pytest.fixture(scope="module")
def urls() -> Iterator[tuple[str, str]]:
    with demo.serve() as good, demo.serve([Route("/{name}", answer)]) as faulty:
        yield good, faulty


@pytest.fixture(autouse=True)
def fault(urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Both services answer from the sample; call it to let one of them give one of the `ANSWERS`."""
    good, faulty = urls
    monkeypatch.setenv(GEOCODING, f"{good}/v1/search")
    monkeypatch.setenv(FORECAST, f"{good}/v1/forecast")
    return lambda service, name: monkeypatch.setenv(service, f"{faulty}/{name}")


@pytest.mark.parametrize(
    ("city", "conditions"),
    [("Tokyo", "partly cloudy"), ("São Paulo", "rain showers"), ("Vostok Station", "snow grains")],
)
async def test_weather_is_what_the_service_says(city: str, conditions: str) -> None:
    country, *_, temperature, _, wind = demo.CITIES[city]
    assert await get_weather(city=city) == {
        "city": city,
        "country": country,
        "temperature": f"{temperature} °C",
        "conditions": conditions,
        "wind": f"{wind} km/h",
    }


@pytest.mark.parametrize("city", ["Tokyo", "São Paulo"])
async def test_population_is_what_the_service_says(city: str) -> None:
    country, _, _, _, population, *_ = demo.CITIES[city]
    assert await get_population(city=city) == {"city": city, "country": country, "population": population}


async def test_units_are_those_of_the_service_and_an_unknown_code_is_shown(fault: Fault) -> None:
    fault(FORECAST, "frogs")
    weather = await get_weather(city="Tokyo")
    assert (weather["temperature"], weather["conditions"], weather["wind"]) == ("70.1 °F", "weather code 42", "3 mph")


async def test_the_service_is_asked_for_exactly_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    async def search(request: Request) -> Response:
        asked.extend(request.query_params.multi_items())
        return await demo.geocoding(request)

    async def forecast(request: Request) -> Response:
        asked.extend(request.query_params.multi_items())
        return await demo.forecast(request)

    find = [("name", "Tokyo"), ("count", "1")]
    current = ("current", "temperature_2m,weather_code,wind_speed_10m")
    with demo.serve([Route("/search", search), Route("/forecast", forecast)]) as url:
        monkeypatch.setenv(GEOCODING, f"{url}/search")
        monkeypatch.setenv(FORECAST, f"{url}/forecast")
        await get_population(city="Tokyo")
        assert asked == find
        await get_weather(city="Tokyo")
        assert asked == [*find, *find, ("latitude", "35.6895"), ("longitude", "139.6917"), current]


async def test_odd_city_names_arrive_intact(monkeypatch: pytest.MonkeyPatch) -> None:
    async def search(request: Request) -> Response:
        place = {"name": request.query_params["name"], "latitude": 1, "longitude": 2, "population": 3}
        return JSONResponse({"results": [place]})

    with demo.serve([Route("/", search)]) as url:
        monkeypatch.setenv(GEOCODING, url)
        for city in ["São Paulo", "東京", "a&b=c ", "100%25 + #1/?"]:
            assert await get_population(city=city) == {"city": city, "country": "", "population": 3}


@both_tools
async def test_a_city_that_does_not_exist_is_named(tool: AnyTool) -> None:
    with pytest.raises(ValueError, match="no city called 'Atlantis'"):
        await tool(city="Atlantis")


@pytest.mark.parametrize("name", ["no-results-key", "empty-results"])
async def test_an_answer_without_places_means_no_such_city(fault: Fault, name: str) -> None:
    fault(GEOCODING, name)
    with pytest.raises(ValueError, match="no city called 'Tokyo'"):
        await get_weather(city="Tokyo")


async def test_a_population_that_is_not_recorded_is_no_number() -> None:
    with pytest.raises(ValueError, match="population of 'Vostok Station' is not recorded"):
        await get_population(city="Vostok Station")


@both_services
async def test_a_refused_request_gives_the_reason(fault: Fault, tool: AnyTool, service: str) -> None:
    fault(service, "bad-request")
    with pytest.raises(open_meteo.OpenMeteoError, match=r"'Tokyo'.*400: Value out of range\.") as error:
        await tool(city="Tokyo")
    assert error.value.response is not None
    assert error.value.response.status_code == 400


@both_services
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("limit", "failed with HTTP status 429: Hourly limit exceeded."),
        ("crash", "failed with HTTP status 500"),
        ("overload", "failed with HTTP status 503"),
        *((name, "is malformed") for name in ("html", "list", "cut", "fields-missing", "nulls")),
    ],
)
async def test_a_failure_that_may_pass_is_not_blamed_on_the_city(
    fault: Fault, tool: AnyTool, service: str, name: str, message: str
) -> None:
    fault(service, name)
    with pytest.raises(open_meteo.OpenMeteoError, match=f"about 'Tokyo' {message}") as error:
        await tool(city="Tokyo")
    assert not isinstance(error.value, ValueError)


@both_services
async def test_a_service_that_cannot_be_reached_is_reported(
    tool: AnyTool, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with demo.serve() as closed:
        pass
    monkeypatch.setenv(service, closed)
    with pytest.raises(open_meteo.OpenMeteoError, match="cannot ask about 'Tokyo'"):
        await tool(city="Tokyo")


@both_services
async def test_a_service_that_does_not_answer_is_given_up(
    tool: AnyTool, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def silent(_: Request) -> Response:
        over.wait(5)
        return Response()

    with demo.serve([Route("/", silent)]) as url:
        monkeypatch.setenv(service, url)
        monkeypatch.setattr(open_meteo, "TIMEOUT", httpx.Timeout(5, read=0.2))
        try:
            with pytest.raises(open_meteo.OpenMeteoError, match=r"'Tokyo' in time \(ReadTimeout\)"):
                await tool(city="Tokyo")
        finally:
            over.set()


@both_tools
def test_the_model_is_told_that_a_city_is_required(tool: AnyTool) -> None:
    assert tool.param_schema["required"] == ["city"]
    assert {name: field["type"] for name, field in tool.param_schema["properties"].items()} == {"city": "string"}
