"""Workflows that have to do with telemetry."""

import asyncio

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai
    from agents import other_agent, transcript_of
    from recorder import FAULTS, LINGERS, RECORDER

    from durable import TemporalLanguageModel
    from workflow import TOOLS, agent


@workflow.defn
class EnablingWorkflow:
    """The sample's agent, with a handler that the workflow enables."""

    @workflow.run
    async def run(self, query: str) -> str:
        ai.telemetry.enable(RECORDER)
        return (await transcript_of(ai.run(agent, TemporalLanguageModel("test/model"), query)))[-1].text


@workflow.defn
class DisablingWorkflow:
    """The same, without any."""

    @workflow.run
    async def run(self, query: str) -> str:
        ai.telemetry.disable()
        return (await transcript_of(ai.run(agent, TemporalLanguageModel("test/model"), query)))[-1].text


@workflow.defn
class TogetherWorkflow:
    """Two agents in one run."""

    @workflow.run
    async def run(self, queries: list[str]) -> None:
        await transcript_of(ai.run(together, TemporalLanguageModel("test/model"), queries))


async def together(llm: ai.LanguageModel, queries: list[str]) -> None:
    await asyncio.gather(*(other_agent(llm, query) for query in queries))


@workflow.defn
class LingeringWorkflow:
    """Waits while it holds an agent's run whose loop is over: it ends with a tool call."""

    @workflow.run
    async def run(self, query: str) -> None:
        async for message in ai.run(one_call, TemporalLanguageModel("test/model"), query):
            if message.tool_calls[0].status == "result":
                LINGERS.set()
                await workflow.wait_condition(lambda: False)


async def one_call(llm: ai.LanguageModel, query: str) -> None:
    result = await ai.stream_step(llm, ai.make_messages(user=query), TOOLS)
    await ai.execute_tool(result.tool_calls[0], result.messages[-1])


@workflow.defn
class FaultyWorkflow:
    """The sample's agent, in a workflow whose bugs fail workflow tasks, which Temporal makes again."""

    @workflow.run
    async def run(self, query: str) -> None:
        await transcript_of(ai.run(agent, TemporalLanguageModel("test/model"), query))
        if FAULTS:
            raise RuntimeError(FAULTS.pop())


WORKFLOWS = [EnablingWorkflow, DisablingWorkflow, TogetherWorkflow, LingeringWorkflow, FaultyWorkflow]
