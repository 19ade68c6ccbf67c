"""The obvious version of this sample: the same SDK and loop, each call just handed to an activity.

The transcript is the input of the model activity, and nothing keeps `ai.run()` from polling, so timers are written.
No heartbeats, no summaries, no checks of what comes back.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from typing import override

import pydantic
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import instant
    import vercel_ai_sdk as ai
    import work
    from worker import WorkerOptions

    from plugin import with_passthrough

TIMEOUT = timedelta(minutes=1)


class ToolSpec(pydantic.BaseModel):
    name: str
    description: str
    param_schema: dict[str, object]


class ModelInput(pydantic.BaseModel):
    messages: list[ai.Message]
    tools: list[ToolSpec]


@activity.defn
async def call_model(request: ModelInput) -> ai.Message:
    return await instant.InstantModel("instant/model").buffer(request.messages)


@activity.defn
async def weather_activity(city: str) -> str:
    return work.look_up("get_weather", city)


@activity.defn
async def population_activity(city: str) -> str:
    return work.look_up("get_population", city)


class ActivityModel(ai.LanguageModel):
    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        specs = [ToolSpec(name=t.name, description=t.description, param_schema=t.param_schema) for t in tools or ()]
        request = ModelInput(messages=messages, tools=specs)
        yield await workflow.execute_activity(call_model, request, start_to_close_timeout=TIMEOUT)


@ai.tool
async def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return await workflow.execute_activity(weather_activity, city, start_to_close_timeout=TIMEOUT)


@ai.tool
async def get_population(city: str) -> str:
    """Get the number of people who live in a city."""
    return await workflow.execute_activity(population_activity, city, start_to_close_timeout=TIMEOUT)


async def agent(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    messages = ai.make_messages(system=work.INSTRUCTIONS, user=query)
    while True:
        result = await ai.stream_step(llm, messages, [get_weather, get_population], label="agent")
        if not result.tool_calls:
            return result
        message = result.messages[-1]
        messages.append(message)
        await asyncio.gather(*(ai.execute_tool(call, message) for call in result.tool_calls))


@workflow.defn
class ObviousWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        text = ""
        async for message in ai.run(agent, ActivityModel(), query):
            text = message.text
        return text


async def connect(address: str) -> Client:
    return await Client.connect(address, data_converter=pydantic_data_converter)


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(
        client,
        **options,
        workflows=[ObviousWorkflow],
        activities=[call_model, weather_activity, population_activity],
        workflow_runner=with_passthrough(None),
    )
