"""Agents and workflows with the tools of MCP servers."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import pydantic
from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    import toolbox
    import vercel_ai_sdk as ai
    from agents import transcript_of

    from bridge.wire import WireMessage
    from durable import TemporalLanguageModel
    from options.approvals import approve_if_enabled, ask_a_person, enable_approvals
    from options.continuing import Carried, ContinuingModel
    from options.mcp import McpToolOptions, mcp_tools

ONCE = McpToolOptions(retry_policy=RetryPolicy(maximum_attempts=1))
QUICKLY = McpToolOptions(
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=2), before=approve_if_enabled
)


async def mcp_agent(llm: ai.LanguageModel, query: str, server: str) -> ai.StreamResult:
    tools = await mcp_tools(server)
    return await ai.stream_loop(llm, ai.make_messages(user=query), tools)


async def quick_agent(llm: ai.LanguageModel, query: str, server: str) -> ai.StreamResult:
    """Gives up soon, and at once for `hold`; a person is asked before `add`."""
    tools = await mcp_tools(server, per_tool={"hold": ONCE, "add": {"before": ask_a_person}}, **QUICKLY)
    return await ai.stream_loop(llm, ai.make_messages(user=query), tools)


async def hurried_agent(llm: ai.LanguageModel, query: str, server: str) -> ai.StreamResult:
    """Has a second for each call, once."""
    second = timedelta(seconds=1)
    tools = await mcp_tools(server, start_to_close_timeout=second, retry_policy=RetryPolicy(maximum_attempts=1))
    return await ai.stream_loop(llm, ai.make_messages(user=query), tools)


async def mistyped_agent(llm: ai.LanguageModel, query: str, server: str) -> None:
    await mcp_tools(server, per_tool={"ad": {"before": ask_a_person}})


async def clashing_agent(llm: ai.LanguageModel, query: str, server: str) -> None:
    await asyncio.gather(mcp_tools("http"), mcp_tools("stdio"))


async def doubled_agent(llm: ai.LanguageModel, query: str, server: str) -> ai.StreamResult:
    tools = [*await mcp_tools(server), *toolbox.TOOLS]
    return await ai.stream_loop(llm, ai.make_messages(user=query), tools)


async def prefixed_agent(llm: ai.LanguageModel, query: str, server: str) -> ai.StreamResult:
    """Has the tools of two servers, those of one under other names."""
    one, other = await asyncio.gather(mcp_tools("http"), mcp_tools("stdio", tool_prefix="local"))
    return await ai.stream_loop(llm, ai.make_messages(user=query), [*one, *other])


AGENTS = {
    agent.__name__.removesuffix("_agent"): agent
    for agent in (mcp_agent, quick_agent, hurried_agent, mistyped_agent, clashing_agent, doubled_agent, prefixed_agent)
}


class McpRequest(pydantic.BaseModel):
    server: str
    agent: str = "mcp"
    approve: bool = False
    carried: Carried | None = None


@workflow.defn
class McpWorkflow:
    """Any of the agents above; returns every message."""

    @workflow.run
    async def run(self, request: McpRequest) -> list[WireMessage]:
        enable_approvals(request.approve)
        llm = TemporalLanguageModel("test/model")
        return await transcript_of(ai.run(AGENTS[request.agent], llm, "go", request.server))


@workflow.defn
class LongMcpWorkflow:
    """The agent, in runs that continue as new; returns the answer."""

    @workflow.run
    async def run(self, request: McpRequest) -> str:
        llm = ContinuingModel("test/model", request)
        run = ai.run(mcp_agent, llm, "go", request.server, checkpoint=llm.checkpoint)
        return (await transcript_of(run))[-1].text


@workflow.defn
class SeveralLoopsWorkflow:
    """Loops at once and one after the other, and one with tools that the workflow asked for."""

    @workflow.run
    async def run(self, servers: list[str]) -> list[str]:
        llm = TemporalLanguageModel("test/model")

        async def answer(server: str) -> str:
            return (await transcript_of(ai.run(mcp_agent, llm, "go", server)))[-1].text

        answers = await asyncio.gather(*(answer(server) for server in [*servers, *servers]))
        answers += [await answer(server) for server in servers]
        tools = await mcp_tools(servers[0])
        run = ai.run(ai.stream_loop, llm, ai.make_messages(user="go"), tools)
        return [*answers, (await transcript_of(run))[-1].text]


@workflow.defn
class HastyMcpWorkflow:
    """Two calls, one after the other. The first one is given up when `enough` is signalled."""

    def __init__(self) -> None:
        self._enough = False

    @workflow.run
    async def run(self, server: str) -> list[WireMessage]:
        async def loop(llm: ai.LanguageModel) -> None:
            tools = await mcp_tools(server)
            result = await ai.stream_step(llm, ai.make_messages(user="go"), tools)
            first, second = result.tool_calls
            call = asyncio.create_task(ai.execute_tool(first))
            await workflow.wait_condition(lambda: self._enough)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            await ai.execute_tool(second, result.messages[-1])

        return await transcript_of(ai.run(loop, TemporalLanguageModel("test/model")))

    @workflow.signal
    def enough(self) -> None:
        self._enough = True


WORKFLOWS = [McpWorkflow, LongMcpWorkflow, SeveralLoopsWorkflow, HastyMcpWorkflow]
