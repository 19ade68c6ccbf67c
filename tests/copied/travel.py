"""Another agent, in another project, with the sample's durable.py and activities.py copied beside it."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Any, override

import pydantic
from temporalio import workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai
    from travel_tools import book, charge, quote

    from activities import APPROVAL, Approval, ModelActivities, open_questions, text_of, tool_call_activity
    from durable import HEARTBEAT_THROTTLE, WORKFLOW_RUNNER, TemporalLanguageModel, temporal_failures, temporal_tool

TOOLS: list[ai.Tool[..., Any]] = [
    temporal_tool(quote),
    temporal_tool(book, approval=True),
    temporal_tool(charge, retry_policy=RetryPolicy(maximum_attempts=1)),
]


async def travel_agent(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    return await ai.stream_loop(llm, ai.make_messages(user=query), TOOLS)


@workflow.defn
class TravelWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        llm = TemporalLanguageModel("scripted")
        with temporal_failures():
            async for message in ai.run(travel_agent, llm, query):
                answer = text_of(message)
        return answer


class ScriptedModel(ai.LanguageModel):
    """The model of this project: calls each tool in turn, and then says what came of it."""

    CALLS = (
        (
            "quote",
            '{"legs": [{"start": "Oslo", "end": "Rome", "day": "2026-05-01"}], "options": {"luggage": ["skis"]}}',
        ),
        ("book", '{"price": 165}'),
        ("charge", '{"price": 165}'),
    )

    def __init__(self, name: str) -> None:
        assert name == "scripted"

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        done = [part for message in messages for part in message.tool_calls]
        if len(done) < len(self.CALLS):
            name, arguments = self.CALLS[len(done)]
            part: ai.Part = ai.ToolPart(tool_call_id=name, tool_name=name, tool_args=arguments)
        else:
            part = ai.TextPart(text="; ".join(f"{part.tool_name}: {part.result}" for part in done))
        yield ai.Message(role="assistant", parts=[part])


async def main(address: str, approved: bool) -> None:
    client = await Client.connect(address, data_converter=pydantic_data_converter)
    worker = Worker(
        client,
        task_queue="travel",
        workflows=[TravelWorkflow],
        activities=[ModelActivities(ScriptedModel).llm_stream_activity, tool_call_activity],
        workflow_runner=WORKFLOW_RUNNER,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
    )
    async with worker:
        run_id = f"travel-{approved}"
        handle = await client.start_workflow(TravelWorkflow.run, "A trip to Rome", id=run_id, task_queue="travel")
        async for event in handle.fetch_history_events(wait_new_event=True):
            if event.HasField("workflow_properties_modified_event_attributes"):
                for call in open_questions(await (await handle.describe()).memo()):
                    print(await handle.execute_update(APPROVAL, Approval(call=call, approved=approved)))
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "yes"))
    sys.stdout.flush()
    os._exit(0)  # the Temporal runtime may crash an interpreter that takes itself down
