"""The obvious version, that of variant_obvious.py, with real calls: each has an HTTP client of its own."""

import json
import os

import httpx
import load_work
import vercel_ai_sdk as ai
from temporalio import activity
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker
from variant_obvious import ModelInput, ObviousWorkflow
from worker import WorkerOptions

from plugin import with_passthrough


@activity.defn
async def call_model(request: ModelInput) -> ai.Message:
    model = ai.ai_gateway.GatewayModel(load_work.MODEL, base_url=os.environ["AI_GATEWAY_BASE_URL"])
    return await model.buffer(request.messages, request.tools)


@activity.defn
async def population_activity(city: str) -> str:
    async with httpx.AsyncClient() as client:
        return json.dumps(await load_work.look_up(city, client))


async def connect(address: str) -> Client:
    return await Client.connect(address, data_converter=pydantic_data_converter)


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(
        client,
        **options,
        max_concurrent_activities=load_work.slots(),
        workflows=[ObviousWorkflow],
        activities=[call_model, population_activity],
        workflow_runner=with_passthrough(None),
    )
