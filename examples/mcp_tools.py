"""Shows the tools of an MCP server in a durable loop: the list of them and each call are activities, on one session.

    uv run python examples/mcp_tools.py

Without AI_GATEWAY_API_KEY a demo stands in for a model. The Temporal server is found as main.py finds one.
"""

import asyncio
import os
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from temporalio import workflow
from temporalio.client import WorkflowFailureError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai

    from app import demo
    from app.output import say, say_error, set_up_logging
    from app.runs import why_failed
    from app.server import temporal_server
    from bridge.wire import text_of
    from durable import TemporalLanguageModel
    from options.gateway import GatewayModel
    from options.mcp import McpServers, StdioServer, mcp_tools
    from plugin import DurableAgents

QUERY = "What is the population of Tokyo, of Paris and of Atlantis?"


async def agent(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    tools = await mcp_tools("places")  # in the place of `await ai.mcp.get_stdio_tools(…)`
    return await ai.stream_loop(llm, ai.make_messages(user=query), tools)


@workflow.defn
class PlacesWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        async for message in ai.run(agent, TemporalLanguageModel("anthropic/claude-sonnet-4.6"), query):
            answer = text_of(message)
        return answer


async def main() -> None:
    # The workflow knows a name, and the worker the rest: commands and URLs, headers and variables.
    servers = McpServers({"places": StdioServer(sys.executable, [str(Path(__file__).with_name("places_server.py"))])})
    async with (
        temporal_server(DurableAgents(GatewayModel)) as server,
        Worker(server.client, task_queue="places", workflows=[PlacesWorkflow], plugins=[servers]),
    ):
        name = f"places-{uuid.uuid4().hex[:12]}"
        print(await server.client.execute_workflow(PlacesWorkflow.run, QUERY, id=name, task_queue="places"), flush=True)


def run() -> int:
    set_up_logging(debug=False)
    try:
        with ExitStack() as stack:
            if not os.environ.get("AI_GATEWAY_API_KEY"):
                os.environ.update(demo.environment(stack.enter_context(demo.serve())))
            asyncio.run(main())
        return 0
    except WorkflowFailureError as error:
        say(f"Error: {why_failed(error)}")
    except Exception as error:
        say_error(error, debug=False)
    return 1


if __name__ == "__main__":
    os._exit(run())  # see the end of main.py
