"""The agent, and the workflow that makes it durable.

`agent()` is a plain loop of the Vercel AI SDK and knows nothing of Temporal. `ai.run(agent, GatewayModel("…"), "…")`
runs it without Temporal. It is then not durable, and the error of a tool ends it.
"""

import asyncio
from collections.abc import Sequence

from temporalio import workflow

# The sandbox loads this file anew for every run. A module that is passed through is loaded once for the whole worker:
# large libraries and pydantic classes, for speed, and the tools, so that the activities find them.
with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai

    from bridge.wire import STOPPED, text_of
    from durable import temporal_tool
    from options.approvals import approve_if_enabled, enable_approvals
    from options.conversation import Conversation, ConversingModel
    from tools import get_population, get_weather
    from workflow_types import AgentAnswer, AgentRequest

SYSTEM_PROMPT = """\
You answer questions about the weather in cities and about how many people live there.
Look everything up with the tools, several cities at once where you can; never guess a number.
When a tool fails, say so and answer what you can. Be brief."""

TOOLS = [get_weather, get_population]


async def agent(llm: ai.LanguageModel, query: str, earlier: Sequence[ai.Message] = ()) -> ai.StreamResult:
    """Ask the model, run the tools it calls all at once, and again, until it answers in text."""
    system, user = ai.make_messages(system=SYSTEM_PROMPT, user=query)
    messages = [system, *earlier, user]
    while True:
        result = await ai.stream_step(llm, messages, TOOLS, label="agent")
        if not result.tool_calls:
            return result
        message = result.messages[-1]
        messages.append(message)
        # Each result goes into its call, which is a part of this message.
        await asyncio.gather(*(ai.execute_tool(call, message) for call in result.tool_calls))


# From here on, `ai.execute_tool` finds the durable tools under the same names.
for tool in TOOLS:
    temporal_tool(tool, before=approve_if_enabled)


@workflow.defn
class AgentWorkflow:
    """Runs `agent()` so that it survives crashes: every model and tool call is an activity."""

    @workflow.init  # so that it takes messages from the first moment
    def __init__(self, request: AgentRequest) -> None:
        self._conversation = Conversation(request, stay_open=request.stay_open, idle_limit=request.idle_limit)

    @workflow.run
    async def run(self, request: AgentRequest) -> AgentAnswer:
        enable_approvals(request.approve)  # for this workflow run only
        answer = AgentAnswer(text="")
        while turn := await self._conversation.next_turn():  # one for the query, and one for each message that follows
            # A `TemporalLanguageModel` that continues the run as new when its history is long. Only for loops that make
            # one model call at a time.
            llm = ConversingModel(request.model, turn, max_calls=request.max_model_calls, max_tokens=request.max_tokens)
            async with turn:  # may be stopped
                earlier = await turn.earlier()
                # After it has continued as new, `ai.run()` answers from the checkpoint what was done before.
                async for message in ai.run(agent, llm, turn.question, earlier, checkpoint=llm.checkpoint):
                    turn.text = text_of(message)  # that of the last message is the answer
            answer = AgentAnswer(text=turn.text, finish_reason=STOPPED if turn.is_stopped else llm.finish_reason)
        return answer.model_copy(update={"conversation": self._conversation.state()})
