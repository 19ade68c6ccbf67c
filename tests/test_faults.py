"""Faults of the model's service: passing ones are ridden out, final ones end the run, no secret gets out."""

import asyncio
import json as jsonlib
import socket
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import agents
import mcp_agents
import pytest
import vercel_ai_sdk as ai
from conftest import RunMain, StartAgent, make_worker
from standin import Reply, StandIn, cut_off, hang, parts, status, text, text_parts
from standin import tools as calls
from starlette.responses import HTMLResponse, StreamingResponse
from temporalio.client import Client, WorkflowHandle, WorkflowHistory
from temporalio.worker import Replayer

from app.demo import Part, finish, gateway_error
from durable import MODEL_OPTIONS, TOOL_OPTIONS
from options.gateway import GatewayModel
from plugin import DurableAgents
from workflow import AgentWorkflow
from workflow_types import AgentRequest

type Execute = Callable[..., Awaitable[Any]]

HALF: list[Part] = [{"type": "text-start", "id": "1"}, {"type": "text-delta", "id": "1", "delta": "half a mess"}]
ERROR: Part = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

PASSING: dict[str, Reply] = {
    "429": status(429, "rate_limit_exceeded"),
    "500": status(500),
    "502 with a page of a proxy": lambda call: HTMLResponse("<h1>Bad gateway</h1>", 502),
    "503": status(503),
    "408": status(408, "timeout_error"),
    "no finish part": parts(*HALF),
    "connection lost": cut_off(*HALF),
    "error part": parts(*HALF, ERROR),
    "error part, finished all the same": parts(*text_parts("half a mess"), ERROR, finish("other")),
    "error part as a string": parts(*HALF, {"type": "error", "error": "Overloaded"}, finish("stop")),
    "finished with an error": parts(*text_parts("half a mess"), finish("error")),
    "silence": hang(*HALF),
    "silence from the start": hang(),
    "nothing at all": parts(),
    "text of a block that was never begun": parts({"type": "text-delta", "id": "t", "delta": "?"}, finish("stop")),
}


# ── Passing faults ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", PASSING)
async def test_a_passing_fault_is_ridden_out(client: Client, queue: str, standin: StandIn, fault: str) -> None:
    standin.play(PASSING[fault], text("the whole message"))
    answer = await client.execute_workflow(
        agents.ImpatientWorkflow.run, "Weather?", id=uuid.uuid4().hex, task_queue=queue
    )
    assert answer == "the whole message"
    assert len(standin.calls) == 2


async def test_a_line_that_is_no_json_may_have_been_text_and_is_asked_for_again(
    client: Client, queue: str, standin: StandIn
) -> None:
    async def lines() -> AsyncIterator[str]:
        for part in text_parts("the whole message"):
            yield f"data: {jsonlib.dumps(part)}\n\n"
        yield 'data: {"type": "error"\n\n'
        yield f"data: {jsonlib.dumps(finish('stop'))}\n\n"

    standin.play(lambda call: StreamingResponse(lines(), media_type="text/event-stream"), text("the whole message"))
    answer = await client.execute_workflow(
        agents.ImpatientWorkflow.run, "Weather?", id=uuid.uuid4().hex, task_queue=queue
    )
    assert answer == "the whole message"
    assert len(standin.calls) == 2


async def test_a_gateway_that_is_gone_for_a_while_is_waited_for(
    client: Client, queue: str, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AI_GATEWAY_BASE_URL", f"http://127.0.0.1:{gone.getsockname()[1]}/v3/ai")
        handle = await client.start_workflow(
            agents.ImpatientWorkflow.run, "Weather in Tokyo?", id=uuid.uuid4().hex, task_queue=queue
        )
        await attempts_reach(handle, 5)
    monkeypatch.setenv("AI_GATEWAY_BASE_URL", standin.environment["AI_GATEWAY_BASE_URL"])
    assert "Tokyo" in await handle.result()


async def attempts_reach(handle: WorkflowHandle[Any, Any], number: int) -> None:
    async with asyncio.timeout(30):
        while True:
            pending = (await handle.describe()).raw_description.pending_activities
            if any(activity.attempt >= number for activity in pending):
                return


def test_a_failed_attempt_is_told_with_its_reason_and_the_time_of_the_next(run_main: RunMain, standin: StandIn) -> None:
    standin.play(status(503, message="come back later"), status(503, message="come back later"))
    result = run_main("Weather in Tokyo?", "--model", "m", env=standin.environment)
    assert (result.returncode, len(standin.calls)) == (0, 4)
    told = [line for line in result.stderr.splitlines() if "failed" in line]
    assert told[-1] == "  ! m, call 1: attempt 2 failed: HTTP 503: come back later; next one in 2 s"


async def test_without_these_checks_the_sdk_takes_half_a_message_for_an_answer(standin: StandIn) -> None:
    """Should this fail, the SDK has learned to tell, and `GatewayModel` can go."""
    standin.play(PASSING["error part"])
    plain = ai.ai_gateway.GatewayModel("m", base_url=standin.environment["AI_GATEWAY_BASE_URL"])
    assert (await plain.buffer(ai.make_messages(user="?"))).text == "half a mess"
    standin.play(PASSING["error part"])
    with pytest.raises(ai.ai_gateway.errors.GatewayError, match="Overloaded"):
        await GatewayModel("m").buffer(ai.make_messages(user="?"))


async def test_a_model_that_is_used_again_does_not_take_an_earlier_end_for_its_own(standin: StandIn) -> None:
    standin.play(text("whole"), PASSING["no finish part"])
    model = GatewayModel("m")
    assert (await model.buffer(ai.make_messages(user="?"))).text == "whole"
    with pytest.raises(ai.ai_gateway.errors.GatewayError, match="ended before its finish part"):
        await model.buffer(ai.make_messages(user="?"))


# ── Secrets ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [400, 503])
async def test_the_key_is_in_no_event_line_or_error(
    run_main: RunMain, standin: StandIn, client: Client, code: int
) -> None:
    def echo(call: Any) -> Any:
        return gateway_error(code, "invalid_request_error", f"bad request: {jsonlib.dumps(call.headers)}")

    standin.play(echo)
    name = uuid.uuid4().hex
    result = run_main("Weather in Tokyo?", "--id", name, env=standin.environment)
    key = standin.environment["AI_GATEWAY_API_KEY"]
    history = (await client.get_workflow_handle(name).fetch_history()).to_json()
    assert standin.calls[0].headers["authorization"] == f"Bearer {key}"
    assert "bad request" in result.stderr
    assert key not in result.stdout + result.stderr + history
    assert "$AI_GATEWAY_API_KEY" in result.stderr


def test_a_key_that_is_no_header_ends_the_run_without_showing_it(run_main: RunMain, standin: StandIn) -> None:
    result = run_main("Weather?", env={**standin.environment, "AI_GATEWAY_API_KEY": "secret\nkey"})
    assert result.returncode == 1
    assert "secret" not in result.stdout + result.stderr
    assert len(standin.calls) == 0


# ── Sizes and numbers ────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_of_a_thousand_lines_passes(run_main: RunMain, standin: StandIn) -> None:
    lines = [f"line {i} of a long answer\n" for i in range(1000)]
    standin.play(text(*lines))
    assert run_main("Write a lot", env=standin.environment).stdout == "".join(lines) + "\n"


async def test_fifty_tool_calls_in_one_turn(start_agent: StartAgent, standin: StandIn) -> None:
    cities = ["Tokyo", "Paris", "London", "Cairo", "Delhi"]
    standin.play(calls(*((str(i), "get_population", {"city": cities[i % 5]}) for i in range(50))), text("done"))
    assert (await (await start_agent()).result()).text == "done"
    assert len(standin.calls[1].tool_results) == 50
    assert Counter(standin.lookups) == Counter(cities * 10)


@pytest.mark.parametrize(("each", "cached"), [(25, 1000), (10, 2)])
@pytest.mark.usefixtures("standin")
async def test_many_runs_at_once_each_have_their_own_transcript(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, each: int, cached: int
) -> None:
    # So many in one process may hold heartbeats up for seconds, on a loaded machine; this is not about these.
    for options in (MODEL_OPTIONS, TOOL_OPTIONS):
        monkeypatch.setitem(options, "heartbeat_timeout", timedelta(minutes=1))
    queue = uuid.uuid4().hex
    people = {"Tokyo": "9,733,276", "Paris": "2,138,551", "London": "8,961,989", "Cairo": "9,606,916"}
    cities = [city for city in people for _ in range(each)]
    tasks = min(cached, 100)  # no more at once than the cache holds
    async with (
        make_worker(client, queue, max_cached_workflows=cached, max_concurrent_workflow_tasks=tasks),
        asyncio.timeout(120),
    ):
        answers = await asyncio.gather(
            *(
                client.execute_workflow(
                    AgentWorkflow.run,
                    AgentRequest(query=f"Population of {city}", model="m"),
                    id=uuid.uuid4().hex,
                    task_queue=queue,
                )
                for city in cities
            )
        )
    assert [answer.text for answer in answers] == [f"{city}: population {people[city]}." for city in cities]
    assert [
        record.getMessage() for record in caplog.records if record.levelname != "DEBUG" and "httpx" not in record.name
    ] == []


# ── Compatibility ────────────────────────────────────────────────────────────────────────────────────────

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_run_of_a_released_version_still_replays(client: Client, path: Path) -> None:
    history = WorkflowHistory.from_json(path.stem, path.read_text())  # noqa: ASYNC240  # nobody waits
    replayer = Replayer(workflows=[AgentWorkflow, *mcp_agents.WORKFLOWS], plugins=[DurableAgents()])
    await replayer.replay_workflow(history)


def test_there_are_histories() -> None:
    assert HISTORIES
