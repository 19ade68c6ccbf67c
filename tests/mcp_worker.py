"""A worker for the workflows with MCP servers, as a process that can be killed.

python mcp_worker.py ADDRESS QUEUE URL
"""

import asyncio
import sys

from app.command_line import load_when_used

load_when_used()

import mcp_agents
from temporalio.client import Client
from temporalio.worker import Worker

from options.gateway import GatewayModel
from options.mcp import HttpServer, McpServers
from plugin import DurableAgents


async def main(address: str, queue: str, url: str) -> None:
    servers = McpServers({"http": HttpServer(url)})
    client = await Client.connect(address, plugins=[DurableAgents(GatewayModel), servers])
    async with Worker(client, task_queue=queue, workflows=mcp_agents.WORKFLOWS):
        print("ready", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
