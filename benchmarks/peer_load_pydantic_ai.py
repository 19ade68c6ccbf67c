# /// script
# requires-python = ">=3.12"
# dependencies = [
#     "temporalio==1.35.0",
#     "pydantic-ai-slim[temporal]==2.68.0",
#     "httpx==0.28.1",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""The work of load_work.py with Pydantic AI and its Temporal capability, used as its documentation says."""

from pydantic_ai import Agent, ModelMessage, ModelResponse, RequestUsage, TextPart, ToolCallPart
from pydantic_ai.durable_exec.temporal import PydanticAIPlugin, PydanticAIWorkflow, TemporalDurability
from pydantic_ai.messages import ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import load_work
    from worker import WorkerOptions


async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    query = next(part.content for part in messages[0].parts if isinstance(part, UserPromptPart))
    latest = messages[-1].parts[-1]
    reply = await load_work.ask_model(query, latest.content if isinstance(latest, ToolReturnPart) else None)
    call = ToolCallPart(load_work.TOOL, reply.arguments, tool_call_id=reply.call_id)
    # The usage is given, so that the model does not spend time on estimating it.
    usage = RequestUsage(input_tokens=100, output_tokens=60)
    return ModelResponse(parts=[call if reply.arguments else TextPart(reply.text)], usage=usage)


async def get_population(city: str) -> dict[str, object]:
    """Get the number of people who live in a city."""
    return await load_work.look_up(city)


agent = Agent(
    FunctionModel(respond),
    name="agent",
    instructions=load_work.INSTRUCTIONS,
    tools=[get_population],
    capabilities=[TemporalDurability()],
)


@workflow.defn
class PydanticAILoadWorkflow(PydanticAIWorkflow):
    __pydantic_ai_agents__ = (agent,)

    @workflow.run
    async def run(self, query: str) -> str:
        return (await agent.run(query)).output


async def connect(address: str) -> Client:
    return await Client.connect(address, plugins=[PydanticAIPlugin()])


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(client, **options, max_concurrent_activities=load_work.slots(), workflows=[PydanticAILoadWorkflow])
