"""This sample as it is: its workflow, its tools, its gateway model, its worker."""

from temporalio.client import Client
from temporalio.worker import Worker
from worker import WorkerOptions

import main
from options.gateway import GatewayModel
from plugin import DurableAgents


async def connect(address: str) -> Client:
    return await Client.connect(address, plugins=[DurableAgents(GatewayModel)])


def make_worker(client: Client, options: WorkerOptions) -> Worker:
    return main.make_worker(client, options["task_queue"])
