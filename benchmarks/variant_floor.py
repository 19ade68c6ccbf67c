"""The floor: a bare workflow, written by hand, with the same activities. No SDK in the workflow, and no transcript.

What the activities take and return, their options, heartbeats and summaries are the sample's. The model activity is
told just the number of its turn, instead of fetching the transcript: less than a real agent can do with.
"""

import asyncio
import json

import pydantic
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import instant
    import work
    from worker import WorkerOptions

    from activities import tool_call_activity
    from bridge.heartbeats import heartbeats
    from bridge.wire import ModelReply, ToolCall, ToolReply
    from durable import MODEL_OPTIONS, TOOL_OPTIONS, temporal_tool
    from plugin import with_passthrough


class Turn(pydantic.BaseModel):
    number: int
    turns: int


@activity.defn
async def model_activity(turn: Turn) -> ModelReply:
    with heartbeats():
        calls = work.calls_of_turn(turn.number, turn.turns)
        return ModelReply(message=instant.message(calls), finish_reason="tool-calls" if calls else "stop")


@workflow.defn
class FloorWorkflow:
    @workflow.run
    async def run(self, turns: int) -> str:
        for number in range(1, turns + 2):
            reply = await workflow.execute_activity(
                model_activity,
                Turn(number=number, turns=turns),
                **MODEL_OPTIONS | {"summary": f"instant/model, call {number}"},
            )
            calls = reply.message.tool_calls
            await asyncio.gather(*(self._tool(call.tool_name, json.loads(call.tool_args)) for call in calls))
        return reply.message.text

    async def _tool(self, name: str, arguments: dict[str, str]) -> ToolReply:
        return await workflow.execute_activity(
            tool_call_activity,
            ToolCall(tool=name, arguments=dict(arguments)),
            **TOOL_OPTIONS | {"summary": f'{name}(city="{arguments["city"]}")'},
        )


async def connect(address: str) -> Client:
    return await Client.connect(address, data_converter=pydantic_data_converter)


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    for tool in (instant.get_weather, instant.get_population):
        temporal_tool(tool)  # for `tool_call_activity` to find it
    return Worker(
        client,
        **options,
        workflows=[FloorWorkflow],
        activities=[model_activity, tool_call_activity],
        workflow_runner=with_passthrough(None),
    )
