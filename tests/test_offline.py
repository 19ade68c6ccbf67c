"""What the stand-ins give over HTTP: the formats of the two services, and answers a demo can be shown with."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import vercel_ai_sdk as ai
from vercel_ai_sdk.ai_gateway import GatewayModel
from vercel_ai_sdk.ai_gateway.errors import GatewayAuthenticationError, GatewayError, GatewayInvalidRequestError

from app import demo
from tools import get_population, get_weather

HEADERS = {"Authorization": "Bearer key", "ai-language-model-id": "demo", "ai-language-model-streaming": "true"}

FROGS = {"city": "?", "country": "?", "temperature": "-99.5 °C", "conditions": "raining frogs", "wind": "777 km/h"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, demo.serve() as url:
        patch.setattr(demo, "SECONDS_PER_TOKEN", 0)
        yield url


def model(url: str, **headers: str) -> GatewayModel:
    return GatewayModel("demo", api_key="key", base_url=f"{url}/v3/ai", headers=headers)


async def ask(
    url: str, query: str, *results: ai.ToolPart, tools: tuple[ai.ToolLike, ...] = (get_weather, get_population)
) -> ai.Message:
    messages = ai.make_messages(system="Be brief.", user=query)
    if results:
        messages.append(ai.Message(role="assistant", parts=[*results]))
    message = [message async for message in model(url).stream(messages, tools)][-1]
    assert message.usage
    assert min(message.usage.input_tokens, message.usage.output_tokens) > 0
    assert len({call.tool_call_id for call in message.tool_calls}) == len(message.tool_calls)
    return message


def calls(message: ai.Message) -> list[tuple[str, str]]:
    return sorted((call.tool_name, json.loads(call.tool_args)["city"]) for call in message.tool_calls)


def done(id: str, tool: str, city: str, result: Any) -> ai.ToolPart:
    part = ai.ToolPart(tool_call_id=id, tool_name=tool, tool_args=json.dumps({"city": city}))
    (part.set_error if isinstance(result, str) else part.set_result)(result)
    return part


def stream(url: str, query: str) -> list[dict[str, Any]]:
    user = {"role": "user", "content": [{"type": "text", "text": query}]}
    tool = {"type": "function", "name": "get_weather", "description": "", "inputSchema": {"type": "object"}}
    response = httpx.post(f"{url}/v3/ai/language-model", json={"prompt": [user], "tools": [tool]}, headers=HEADERS)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last, end = response.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    parts = [json.loads(event.removeprefix("data: ")) for event in events]
    usage = parts[-1]["usage"]
    assert min(usage["inputTokens"]["total"], usage["outputTokens"]["total"]) > 0
    return parts


def test_a_tool_call_is_streamed_in_the_gateways_format(url: str) -> None:
    start, *call, finish = stream(url, "What is the weather in Tokyo?")
    id, arguments = call[0]["id"], '{"city": "Tokyo"}'
    assert start["type"] == "stream-start"
    assert call == [
        {"type": "tool-input-start", "id": id, "toolName": "get_weather"},
        {"type": "tool-input-delta", "id": id, "delta": arguments},
        {"type": "tool-input-end", "id": id},
        {"type": "tool-call", "toolCallId": id, "toolName": "get_weather", "input": arguments},
    ]
    assert (finish["type"], finish["finishReason"]) == ("finish", {"unified": "tool-calls"})


def test_without_a_city_the_demo_model_says_what_it_is_in_streamed_text(url: str) -> None:
    start, text_start, *deltas, text_end, finish = stream(url, "Hello!")
    id = text_start["id"]
    assert start["type"] == "stream-start"
    assert (text_start, text_end) == ({"type": "text-start", "id": id}, {"type": "text-end", "id": id})
    assert "".join(part["delta"] for part in deltas).startswith("I am a demo model: I only know")
    assert len(deltas) > 5
    assert deltas == [{"type": "text-delta", "id": id, "delta": part["delta"]} for part in deltas]
    assert (finish["type"], finish["finishReason"]) == ("finish", {"unified": "stop"})


@pytest.mark.parametrize(
    ("missing", "status", "kind", "error"),
    [
        ("Authorization", 401, "authentication_error", GatewayAuthenticationError),
        ("ai-language-model-id", 400, "invalid_request_error", GatewayInvalidRequestError),
    ],
)
async def test_a_request_without_key_or_model_fails_as_the_gateway_fails_it(
    url: str, missing: str, status: int, kind: str, error: type[GatewayError]
) -> None:
    headers = {name: value for name, value in HEADERS.items() if name != missing}
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{url}/v3/ai/language-model", json={"prompt": []}, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert response.json()["error"]["message"]
    with pytest.raises(error) as raised:
        await anext(model(url, **{missing: ""}).stream(ai.make_messages(user="Hello!")))
    assert raised.value.status_code == status


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What is the weather in Tokyo?", [("get_weather", "Tokyo")]),
        ("how many people live in são paulo?", [("get_population", "São Paulo")]),
        ("What is the weather in Atlantis?", [("get_weather", "Atlantis")]),
        (
            "What are the weather and the population of New York and Los Angeles?",
            [(tool, city) for tool in ("get_population", "get_weather") for city in ("Los Angeles", "New York")],
        ),
    ],
)
async def test_the_demo_model_looks_everything_up_in_one_turn(
    url: str, query: str, expected: list[tuple[str, str]]
) -> None:
    message = await ask(url, query)
    assert calls(message) == expected
    assert message.text == ""


async def test_the_demo_model_calls_only_the_tools_it_is_offered(url: str) -> None:
    assert calls(await ask(url, "Weather in Tokyo, and its population?", tools=(get_population,))) == [
        ("get_population", "Tokyo")
    ]


async def test_the_answer_is_made_of_the_tool_results_only(url: str) -> None:
    message = await ask(
        url,
        "What are the weather and the population of Tokyo and Lagos?",
        done("a", "get_weather", "Tokyo", FROGS),
        done("b", "get_population", "Tokyo", {"population": 1234}),
        done("c", "get_population", "Lagos", {"population": 56}),
    )
    assert not message.tool_calls
    tokyo, lagos = message.text.splitlines()
    for fact in ("Tokyo", "-99.5 °C", "raining frogs", "777 km/h", "1,234"):
        assert fact in tokyo
    assert lagos == "Lagos: population 56."
    for sample in ("18.4", "partly cloudy", "9,733,276", "28.9"):
        assert sample not in message.text


async def test_a_failed_tool_is_in_the_answer_next_to_what_worked(url: str) -> None:
    message = await ask(
        url,
        "What is the weather in Atlantis and Tokyo?",
        done("a", "get_weather", "Atlantis", "ToolError: get_weather failed: there is no city called 'Atlantis'"),
        done("b", "get_weather", "Tokyo", FROGS),
    )
    atlantis, tokyo = message.text.splitlines()
    assert atlantis == "Atlantis: there is no city called 'Atlantis'."
    assert "raining frogs" in tokyo


def test_every_city_of_the_sample_has_a_place_and_a_forecast(url: str) -> None:
    assert len(demo.CITIES) >= 12
    names = "temperature_2m", "weather_code", "wind_speed_10m"
    with httpx.Client(base_url=url) as client:
        for city, (country, latitude, longitude, timezone, population, *weather) in demo.CITIES.items():
            (place,) = client.get("/v1/search", params={"name": city.upper(), "count": 1}).json()["results"]
            at = {"latitude": latitude, "longitude": longitude}
            assert place.pop("population", None) == population
            assert place == {"name": city, "country": country, "timezone": timezone, **at}
            answer = client.get("/v1/forecast", params={**at, "current": ",".join(names)}).json()
            assert answer["current"].pop("time")
            assert answer["current"] == dict(zip(names, weather, strict=True))
            assert answer["current_units"]["temperature_2m"] == "°C"


def test_a_forecast_holds_what_was_asked_for_and_no_more(url: str) -> None:
    answer = httpx.get(f"{url}/v1/forecast?latitude=35.6895&longitude=139.6917&current=temperature_2m").json()
    assert answer["current"].keys() == answer["current_units"].keys() == {"time", "temperature_2m"}


def test_what_is_not_known_has_no_key(url: str) -> None:
    nowhere = httpx.get(f"{url}/v1/search?name=Atlantis")
    assert nowhere.status_code == 200
    assert "results" not in nowhere.json()
    (place,) = httpx.get(f"{url}/v1/search?name=Vostok Station").json()["results"]
    assert "population" not in place


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("search", "name"),
        ("forecast", "latitude"),
        ("forecast?latitude=north&longitude=1", "latitude"),
        ("forecast?latitude=1&longitude=1", "coordinates"),
    ],
)
def test_a_bad_request_gets_an_open_meteo_error(url: str, path: str, reason: str) -> None:
    response = httpx.get(f"{url}/v1/{path}")
    assert response.status_code == 400
    assert response.json().keys() == {"error", "reason"}
    assert response.json()["error"] is True
    assert reason in response.json()["reason"]


def test_the_environment_leads_to_the_stand_ins(url: str) -> None:
    environment = demo.environment(url)
    assert environment.pop("AI_GATEWAY_API_KEY")
    assert environment == {
        "AI_GATEWAY_BASE_URL": f"{url}/v3/ai",
        "OPEN_METEO_GEOCODING_URL": f"{url}/v1/search",
        "OPEN_METEO_FORECAST_URL": f"{url}/v1/forecast",
    }


def test_the_stand_ins_listen_on_loopback_only_and_stop_at_the_end() -> None:
    def listens(host: str) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((host, port)) == 0

    with demo.serve() as url:
        port = int(url.removeprefix("http://127.0.0.1:"))
        assert listens("127.0.0.1")
        assert not listens("127.0.0.2")
    assert not listens("127.0.0.1")


def test_two_at_once_do_not_get_in_each_others_way(url: str) -> None:
    with demo.serve() as other:
        assert url != other
        for server in (url, other):
            assert httpx.get(f"{server}/v1/search?name=Tokyo").status_code == 200
