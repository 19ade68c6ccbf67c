"""This sample as it is: its own workflow and activities, with instant tools in the place of its two."""

import instant
from temporalio.client import Client
from temporalio.worker import Worker
from worker import WorkerOptions

import tools
from plugin import DurableAgents

# workflow.py takes its tools from here, now and whenever the sandbox loads it anew.
vars(tools).update(get_weather=instant.get_weather, get_population=instant.get_population)

from workflow import AgentWorkflow  # noqa: E402


async def connect(address: str) -> Client:
    return await Client.connect(address, plugins=[DurableAgents(instant.InstantModel)])


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return Worker(client, **options, workflows=[AgentWorkflow])
