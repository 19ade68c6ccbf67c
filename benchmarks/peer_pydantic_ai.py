# /// script
# requires-python = ">=3.12"
# dependencies = [
#     "temporalio==1.35.0",
#     "pydantic-ai-slim[temporal]==2.68.0",
# ]
#
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""The same work with Pydantic AI and its Temporal capability, used as its documentation says.

All settings are the defaults but for one without which the work could not be done: the limit of 50 model requests.
"""

from pydantic_ai import Agent, ModelMessage, ModelRequest, ModelResponse, RequestUsage, TextPart, ToolCallPart
from pydantic_ai.durable_exec.temporal import PydanticAIPlugin, PydanticAIWorkflow, TemporalDurability
from pydantic_ai.messages import ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import UsageLimits
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import work
    from worker import WorkerOptions


async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    query = next(part.content for part in messages[0].parts if isinstance(part, UserPromptPart))
    assert isinstance(query, str)
    assert isinstance(messages[-1], ModelRequest)
    latest = messages[-1].parts[-1]
    calls = work.next_calls(query, latest.tool_call_id if isinstance(latest, ToolReturnPart) else None)
    return ModelResponse(
        parts=[ToolCallPart(call.tool, call.arguments, tool_call_id=call.id) for call in calls]
        or [TextPart(work.ANSWER)],
        # Given, so that the model does not spend time on estimating it.
        usage=RequestUsage(input_tokens=work.TOKENS_IN, output_tokens=work.TOKENS_OUT),
    )


agent = Agent(
    FunctionModel(respond),
    name="agent",
    instructions=work.INSTRUCTIONS,
    tools=[work.get_weather, work.get_population],
    capabilities=[TemporalDurability()],
)


@workflow.defn
class PydanticAIAgentWorkflow(PydanticAIWorkflow):
    __pydantic_ai_agents__ = (agent,)

    @workflow.run
    async def run(self, query: str) -> str:
        result = await agent.run(query, usage_limits=UsageLimits(request_limit=None))
        return result.output


async def connect(address: str) -> Client:
    return await Client.connect(address, plugins=[PydanticAIPlugin()])


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(client, **options, workflows=[PydanticAIAgentWorkflow])
