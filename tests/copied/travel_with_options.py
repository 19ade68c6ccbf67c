"""The same agent with all options: a person approves a tool, the run continues as new, the gateway has the model."""

import asyncio
import os
import sys

import pydantic
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai
    from travel_model import ScriptedModel
    from travel_tools import book, charge, quote

    from bridge.wire import text_of
    from durable import temporal_tool
    from options.approvals import APPROVAL, Approval, ask_a_person, open_questions
    from options.continuing import Carried, ContinuingModel
    from options.gateway import GatewayModel
    from plugin import DurableAgents

TOOLS: list[ai.ToolLike] = [quote, book, charge]
temporal_tool(quote)
temporal_tool(charge)
temporal_tool(book, before=ask_a_person)


async def travel_agent(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    return await ai.stream_loop(llm, ai.make_messages(user=query), TOOLS)


class TravelRequest(pydantic.BaseModel):
    query: str
    carried: Carried | None = None


@workflow.defn
class TravelWorkflow:
    @workflow.run
    async def run(self, request: TravelRequest) -> str:
        llm = ContinuingModel("scripted", request, max_calls=5_000)
        answer = ""
        async for message in ai.run(travel_agent, llm, request.query, checkpoint=llm.checkpoint):
            answer = text_of(message)
        return answer


def make_model(name: str) -> ai.LanguageModel:
    return ScriptedModel(name) if name == "scripted" else GatewayModel(name)


async def main(address: str, approved: bool) -> None:
    client = await Client.connect(address, plugins=[DurableAgents(make_model)])
    async with Worker(client, task_queue="travel", workflows=[TravelWorkflow]):
        request = TravelRequest(query="A trip to Rome")
        handle = await client.start_workflow(TravelWorkflow.run, request, id=f"travel-{approved}", task_queue="travel")
        async for event in handle.fetch_history_events(wait_new_event=True):
            if event.HasField("workflow_properties_modified_event_attributes"):
                for call in open_questions(await (await handle.describe()).memo()):
                    print(await handle.execute_update(APPROVAL, Approval(call=call, approved=approved)))
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "yes"))
    sys.stdout.flush()
    os._exit(0)  # the Temporal runtime may crash an interpreter that takes itself down
