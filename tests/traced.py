"""Workflows that have to do with telemetry."""

import asyncio

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai
    from agents import other_agent, transcript_of
    from recorder import LINGERS, RECORDER

    from durable import TemporalLanguageModel
    from workflow import agent


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
    """Takes the answer out of its agent's run, and then waits while it holds the run."""

    @workflow.run
    async def run(self, query: str) -> None:
        async for message in ai.run(agent, TemporalLanguageModel("test/model"), query):
            if message.text:
                LINGERS.set()
                await workflow.wait_condition(lambda: False)


WORKFLOWS = [EnablingWorkflow, DisablingWorkflow, TogetherWorkflow, LingeringWorkflow]
