# /// script
# requires-python = ">=3.12"
# dependencies = [
#     "temporalio==1.35.0",
#     "temporalio-openai-agents==1.1.0",
#     "openai-agents==0.22.3",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""The same work with the OpenAI Agents SDK and its Temporal plugin, used as the plugin's documentation says.

All settings are the defaults but for two without which the work could not be done: `max_turns` (10 by default), and a
model provider of its own. Tracing is on, as it is by default, but what it records is not sent anywhere.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, override

from agents import (
    Agent,
    AgentOutputSchemaBase,
    Handoff,
    Model,
    ModelProvider,
    ModelResponse,
    ModelSettings,
    ModelTracing,
    Runner,
    Tool,
    TResponseInputItem,
    Usage,
    set_trace_processors,
)
from agents.items import TResponseOutputItem, TResponseStreamEvent
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.openai_agents import ModelActivityParameters, OpenAIAgentsPlugin
from temporalio.openai_agents.workflow import activity_as_tool
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import work
    from worker import WorkerOptions


@activity.defn
async def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return work.look_up("get_weather", city)


@activity.defn
async def get_population(city: str) -> str:
    """Get the number of people who live in a city."""
    return work.look_up("get_population", city)


@workflow.defn
class OpenAIAgentsWorkflow:
    @workflow.run
    async def run(self, query: str, max_turns: int) -> str:
        agent = Agent[None](
            name="agent",
            instructions=work.INSTRUCTIONS,
            tools=[
                activity_as_tool(get_weather, start_to_close_timeout=timedelta(seconds=10)),
                activity_as_tool(get_population, start_to_close_timeout=timedelta(seconds=10)),
            ],
        )
        result = await Runner.run(agent, input=query, max_turns=max_turns)
        return result.final_output_as(str)


class InstantModel(Model):
    @override
    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        **options: Any,
    ) -> ModelResponse:
        items: list[Any] = [{"content": input}] if isinstance(input, str) else list(input)
        calls = work.next_calls(items[0]["content"], items[-1].get("call_id"))
        output: list[TResponseOutputItem] = [
            ResponseFunctionToolCall(
                id=f"fc-{call.id}",
                call_id=call.id,
                name=call.tool,
                arguments=call.arguments,
                type="function_call",
                status="completed",
            )
            for call in calls
        ]
        text = ResponseOutputText(text=work.ANSWER, annotations=[], type="output_text")
        message = ResponseOutputMessage(
            id="answer", content=[text], role="assistant", status="completed", type="message"
        )
        return ModelResponse(
            output=output or [message],
            usage=Usage(
                requests=1,
                input_tokens=work.TOKENS_IN,
                output_tokens=work.TOKENS_OUT,
                total_tokens=work.TOKENS_IN + work.TOKENS_OUT,
            ),
            response_id=None,
        )

    @override
    def stream_response(self, *arguments: Any, **options: Any) -> AsyncIterator[TResponseStreamEvent]:
        raise NotImplementedError


class InstantProvider(ModelProvider):
    @override
    def get_model(self, model_name: str | None) -> Model:
        return InstantModel()


async def connect(address: str) -> Client:
    set_trace_processors([])
    plugin = OpenAIAgentsPlugin(
        model_params=ModelActivityParameters(start_to_close_timeout=timedelta(seconds=30)),
        model_provider=InstantProvider(),
    )
    return await Client.connect(address, plugins=[plugin])


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(client, **options, workflows=[OpenAIAgentsWorkflow], activities=[get_weather, get_population])
