"""The floor: the same calls in a bare workflow written by hand. No SDK, no transcript, no heartbeats."""

import json
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import load_work
    from load_work import Reply
    from worker import WorkerOptions

MODEL_TIMEOUT, TOOL_TIMEOUT = timedelta(hours=24), timedelta(minutes=10)
"""The sample's."""


@activity.defn
async def model_activity(question: str, result: dict[str, Any] | None) -> Reply:
    return await load_work.ask_model(question, result)


@activity.defn
async def tool_activity(city: str) -> dict[str, Any]:
    return await load_work.look_up(city)


@workflow.defn
class LoadFloorWorkflow:
    @workflow.run
    async def run(self, question: str) -> str:
        result: dict[str, Any] | None = None
        while True:
            reply: Reply = await workflow.execute_activity(
                model_activity, args=[question, result], start_to_close_timeout=MODEL_TIMEOUT
            )
            if not reply.arguments:
                return reply.text
            city = json.loads(reply.arguments)["city"]
            result = await workflow.execute_activity(tool_activity, city, start_to_close_timeout=TOOL_TIMEOUT)


async def connect(address: str) -> Client:
    return await Client.connect(address, data_converter=pydantic_data_converter)


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(
        client,
        **options,
        max_concurrent_activities=load_work.slots(),
        workflows=[LoadFloorWorkflow],
        activities=[model_activity, tool_activity],
    )
