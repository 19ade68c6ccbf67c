"""This sample as it is: its own workflow and activities, with instant tools in the place of its two."""

import instant
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker
from worker import WorkerOptions

import tools
from activities import ModelActivities, tool_call_activity
from durable import WORKFLOW_RUNNER

# workflow.py takes its tools from here, now and whenever the sandbox loads it anew.
vars(tools).update(get_weather=instant.get_weather, get_population=instant.get_population)

from workflow import AgentWorkflow  # noqa: E402


async def connect(address: str) -> Client:
    return await Client.connect(address, data_converter=pydantic_data_converter)


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(
        client,
        **options,
        workflows=[AgentWorkflow],
        activities=[ModelActivities(instant.InstantModel).llm_stream_activity, tool_call_activity],
        workflow_runner=WORKFLOW_RUNNER,
    )
