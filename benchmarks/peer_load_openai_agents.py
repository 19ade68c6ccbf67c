# /// script
# requires-python = ">=3.12"
# dependencies = [
#     "temporalio==1.35.0",
#     "temporalio-openai-agents==1.1.0",
#     "openai-agents==0.22.3",
#     "httpx==0.28.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""The work of load_work.py with the OpenAI Agents SDK and its Temporal plugin, used as the plugin's documentation says.

Tracing is on, as it is by default, but what it records is not sent anywhere.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, override

from agents import Agent, Model, ModelProvider, ModelResponse, Runner, TResponseInputItem, Usage, set_trace_processors
from agents.items import TResponseOutputItem, TResponseStreamEvent
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.openai_agents import OpenAIAgentsPlugin
from temporalio.openai_agents.workflow import activity_as_tool
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import load_work
    from worker import WorkerOptions


@activity.defn
async def get_population(city: str) -> dict[str, Any]:
    """Get the number of people who live in a city."""
    return await load_work.look_up(city)


@workflow.defn
class OpenAIAgentsLoadWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        tool = activity_as_tool(get_population, start_to_close_timeout=timedelta(seconds=10))
        agent = Agent[None](name="agent", instructions=load_work.INSTRUCTIONS, tools=[tool])
        return (await Runner.run(agent, input=query)).final_output_as(str)


class GatewayModel(Model):
    @override
    async def get_response(
        self, system_instructions: str | None, input: str | list[TResponseInputItem], *arguments: Any, **options: Any
    ) -> ModelResponse:
        items: list[Any] = [{"content": input}] if isinstance(input, str) else list(input)
        reply = await load_work.ask_model(items[0]["content"], items[-1].get("output"))
        output: TResponseOutputItem
        if reply.arguments:
            output = ResponseFunctionToolCall(
                id=f"fc-{reply.call_id}",
                call_id=reply.call_id,
                name=load_work.TOOL,
                arguments=reply.arguments,
                type="function_call",
                status="completed",
            )
        else:
            text = ResponseOutputText(text=reply.text, annotations=[], type="output_text")
            output = ResponseOutputMessage(
                id="answer", content=[text], role="assistant", status="completed", type="message"
            )
        usage = Usage(requests=1, input_tokens=100, output_tokens=60, total_tokens=160)
        return ModelResponse(output=[output], usage=usage, response_id=None)

    @override
    def stream_response(self, *arguments: Any, **options: Any) -> AsyncIterator[TResponseStreamEvent]:
        raise NotImplementedError


class Provider(ModelProvider):
    @override
    def get_model(self, model_name: str | None) -> Model:
        return GatewayModel()


async def connect(address: str) -> Client:
    set_trace_processors([])
    return await Client.connect(address, plugins=[OpenAIAgentsPlugin(model_provider=Provider())])


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(
        client,
        **options,
        max_concurrent_activities=load_work.slots(),
        workflows=[OpenAIAgentsLoadWorkflow],
        activities=[get_population],
    )
