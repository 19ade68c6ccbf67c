"""Another agent, in another project, with the bridge alone: durable.py, activities.py, plugin.py and bridge/."""

import asyncio
import os
import sys

from temporalio import workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():  # loaded once; the rest of this file anew for every run
    import vercel_ai_sdk as ai
    from travel_model import ScriptedModel
    from travel_tools import charge, quote

    from bridge.wire import text_of
    from durable import TemporalLanguageModel, temporal_tool
    from plugin import DurableAgents

temporal_tool(quote)
temporal_tool(charge, retry_policy=RetryPolicy(maximum_attempts=1))


async def travel_agent(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    return await ai.stream_loop(llm, ai.make_messages(user=query), [quote, charge])


@workflow.defn
class TravelWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        async for message in ai.run(travel_agent, TemporalLanguageModel("scripted"), query):
            answer = text_of(message)
        return answer


async def main(address: str) -> None:
    client = await Client.connect(address, plugins=[DurableAgents(ScriptedModel)])
    async with Worker(client, task_queue="travel", workflows=[TravelWorkflow]):
        print(await client.execute_workflow(TravelWorkflow.run, "A trip to Rome", id="travel", task_queue="travel"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # the Temporal runtime may crash an interpreter that takes itself down
