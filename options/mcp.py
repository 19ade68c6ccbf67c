"""Tools of MCP servers: the list of a server's tools, and each call, by activities.

In the loop, one line changes:

    tools = await ai.mcp.get_http_tools("https://files.example.com/mcp")
    tools = await mcp_tools("files")

A workflow knows a server only by its name. The worker knows the rest, so that no secret is in a history:

    servers = McpServers({
        "files": HttpServer("https://files.example.com/mcp", headers={"Authorization": f"Bearer {token}"}),
        "clock": StdioServer("python", ["clock.py"]),
    })
    client = await Client.connect(address, plugins=[DurableAgents(MyModel), servers])

The same loop runs without Temporal, too:

    async with servers.connected():
        async for message in ai.run(loop, MyModel("…"), query):
            ...

A run asks a server once for its tools, and has the same ones until it ends, also when it is replayed.
"""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Unpack, cast, override

import pydantic
import vercel_ai_sdk as ai
from mcp import types
from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError
from temporalio.plugin import SimplePlugin
from temporalio.worker import WorkerConfig

from activities import tool_reply
from bridge.failures import ToolError, one_line
from bridge.of_run import of_run
from bridge.redaction import redacted_detail, without_kept
from bridge.tools import add_to_run
from bridge.wire import ToolCall, ToolReply, ToolSpec
from durable import MODEL_OPTIONS, BeforeToolCall, _Pump, call_tool
from options.mcp_sessions import Connection, HttpServer, McpServerError, McpToolError, StdioServer

__all__ = ["HttpServer", "McpServerError", "McpServers", "McpToolError", "McpToolOptions", "StdioServer", "mcp_tools"]

LIST_OPTIONS = workflow.ActivityConfig(
    start_to_close_timeout=timedelta(minutes=2),
    # Without its tools a run cannot begin, as little as without its model.
    retry_policy=MODEL_OPTIONS["retry_policy"],
)

DOUBTFUL_ATTEMPTS = 5
"""From this attempt on, what may be a mistake is taken for one: a name that no worker knows, a command that ends at
once. A quarter of a minute: long enough to meet another worker, and shorter than an outage."""


class McpToolOptions(workflow.ActivityConfig, total=False):
    """Options of a tool: `before`, as in `temporal_tool()`, and activity options, over the ones in `TOOL_OPTIONS`."""

    before: BeforeToolCall | None


class McpList(ToolCall):
    """Input of `mcp_list_activity`."""

    server: str

    @property
    @override
    def summary(self) -> str:
        return self.tool


class McpCall(ToolCall):
    """Input of `mcp_call_activity`. `name` is what the server calls the tool that the model knows as `tool`."""

    server: str
    name: str


# ── In the loop ──────────────────────────────────────────────────────────────────────────────────────────


async def mcp_tools(
    server: str,
    *,
    tool_prefix: str | None = None,
    per_tool: Mapping[str, McpToolOptions] | None = None,
    **options: Unpack[McpToolOptions],
) -> list[ai.Tool[..., Any]]:
    """The tools of an MCP server, for a loop: call this inside of `ai.run()`, or before it in a workflow.

    In a workflow, the list and the calls are activities. A call that fails for good raises a `ToolError`, which tells
    the model. Outside a workflow, it does so only if the server answers with an error.

    Args:
        server: The name that the workers have for it (`McpServers`).
        tool_prefix: Stands before the names of its tools, with a `_`.
        per_tool: Options for single tools, over `options`, by the name that the server has for the tool.
        options: `before`, and activity options, for all tools of this server. A `task_queue` is also that of the list.

    Raises:
        ApplicationError: The server did not list its tools, or has none of the name of an option, or two servers have
            tools of one name.
        McpServerError: Outside a workflow, the server cannot be used.
        RuntimeError: There is no `ai.run()`, or, outside a workflow, no `McpServers.connected()`.
    """
    if workflow.in_workflow():
        await _Pump.start()  # from now on `ai.run()` writes no timers
        specs = await of_run(_Lists).of(server, options.get("task_queue"))
    else:
        specs = await _connected().list_tools(server)
    per_tool = per_tool or {}
    if unknown := sorted(per_tool.keys() - {spec.name for spec in specs}):
        # An approval that was meant for a tool must not be lost with the name.
        problem = f"there are options for {unknown[0]!r}, but the MCP server {server!r} has no such tool"
        raise ApplicationError(problem, type="McpToolOptions", non_retryable=True)
    prefix = f"{tool_prefix}_" if tool_prefix else ""
    tools = [_tool(server, prefix + spec.name, spec, options | per_tool.get(spec.name, {})) for spec in specs]
    add_to_run(tools, f"the MCP server {server!r}")
    return tools


def _tool(server: str, tool: str, spec: ToolSpec, options: McpToolOptions) -> ai.Tool[..., Any]:
    before = options.pop("before", None)

    async def call(**arguments: Any) -> Any:
        if not workflow.in_workflow():
            try:
                return await _connected().call_tool(server, spec.name, arguments)
            except McpToolError as error:
                raise ToolError(f"{tool} failed: {one_line(error)}") from error
        call = McpCall(tool=tool, arguments=arguments, server=server, name=spec.name)
        return await call_tool(_call_activity, call, before, options)

    schema = ai.ToolSchema(name=tool, description=spec.description, param_schema=spec.param_schema, return_type=Any)
    return ai.Tool(fn=call, schema=schema)


class _Lists(dict[str, asyncio.Task[list[ToolSpec]]]):
    """The tools of each server that a workflow run has asked."""

    async def of(self, server: str, task_queue: str | None) -> list[ToolSpec]:
        if server not in self:
            self[server] = asyncio.create_task(_list(server, task_queue))
            self[server].add_done_callback(functools.partial(self._done, server))
        # Others may wait for it, too: one that gives up must not cancel it.
        return await asyncio.shield(self[server])

    def _done(self, server: str, task: asyncio.Task[list[ToolSpec]]) -> None:
        if task.cancelled() or task.exception() is not None:
            del self[server]  # whoever asks next asks anew


async def _list(server: str, task_queue: str | None) -> list[ToolSpec]:
    call = McpList(tool=f"the list of tools of {server}", arguments={}, server=server)
    options = LIST_OPTIONS | workflow.ActivityConfig(task_queue=task_queue)
    try:
        result = await call_tool(_list_activity, call, None, options)
    except ToolError as error:  # which would not end a run outside of `ai.run()`
        raise ApplicationError(str(error), type="McpServerError", non_retryable=True) from error.__cause__
    return pydantic.TypeAdapter(list[ToolSpec]).validate_python(result)


# ── On the worker ────────────────────────────────────────────────────────────────────────────────────────


class McpServers(SimplePlugin):
    """The MCP servers of a process, by name: a Temporal plugin for its workers, beside `DurableAgents`.

    Each server has one session in the process, shared by all calls. It is opened by the first call, and closed when the
    worker shuts down. Values of headers, of variables and in URLs with a name such as `Authorization` or `API_KEY` are
    replaced by their names where a server gives them back.

    Args:
        servers: By the name that workflows have for them.

    Raises:
        ValueError: The URL of a server, or the proxy that leads to it, cannot be used.
    """

    def __init__(self, servers: Mapping[str, HttpServer | StdioServer]) -> None:
        self._connections = {name: Connection(name, server) for name, server in servers.items()}
        self._users = 0
        super().__init__(
            "mcp-servers",
            activities=[self.mcp_list_activity, self.mcp_call_activity],
            run_context=self.connected,
        )

    @override
    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        if self.mcp_call_activity in (config.get("activities") or ()):
            return config  # the same plugin on the client and on the worker
        return super().configure_worker(config)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Have `mcp_tools()` find these servers outside of workflows while the body runs, and close their sessions."""
        self._users += 1
        token = _here.set(self)
        try:
            yield
        finally:
            _here.reset(token)
            self._users -= 1
            if not self._users:
                await asyncio.gather(*(connection.close() for connection in self._connections.values()))

    @activity.defn
    async def mcp_list_activity(self, call: McpList) -> ToolReply:
        """Ask a server for its tools."""
        # Without the limit that a call has, whose result shares a history with those of others.
        asking = ToolCall(tool=call.tool, arguments={})
        return await tool_reply(asking, lambda: _attempt(self.list_tools(call.server)))

    @activity.defn
    async def mcp_call_activity(self, call: McpCall) -> ToolReply:
        """Call a tool of a server, and return its result as JSON."""
        return await tool_reply(call, lambda **arguments: _attempt(self.call_tool(call.server, call.name, arguments)))

    async def list_tools(self, server: str) -> list[ToolSpec]:
        """The tools of a server.

        Raises:
            McpServerError: The server cannot be used, or is not known here. Another worker may know it.
        """
        return [
            ToolSpec(name=tool.name, description=tool.description or "", param_schema=tool.inputSchema)
            for tool in await self._connection(server).list_tools()
        ]

    async def call_tool(self, server: str, tool: str, arguments: dict[str, Any]) -> pydantic.JsonValue:
        """Call a tool of a server, by the server's name for it, and return its result as JSON.

        Raises:
            McpServerError: As above; or the call was lost.
            McpToolError: The server answers with an error.
        """
        result = await self._connection(server).call_tool(tool, arguments)
        value = redacted_detail(_readable(result), without_kept)
        if result.isError:
            raise McpToolError(value)
        return cast(pydantic.JsonValue, value)

    def _connection(self, server: str) -> Connection:
        if server not in self._connections:
            names = ", ".join(self._connections) or "none"
            raise McpServerError(f"this worker has no MCP server {server!r}; it has: {names}", True, is_doubtful=True)
        return self._connections[server]


# As the workflow knows them, without the object that they are methods of.
_list_activity = cast(Callable[[McpList], Awaitable[ToolReply]], McpServers.mcp_list_activity)
_call_activity = cast(Callable[[McpCall], Awaitable[ToolReply]], McpServers.mcp_call_activity)

_here: ContextVar[McpServers] = ContextVar("mcp_servers")


async def _attempt[T](call: Awaitable[T]) -> T:
    try:
        return await call
    except McpServerError as error:
        if error.is_doubtful and activity.info().attempt >= DOUBTFUL_ATTEMPTS:
            raise McpServerError(str(error), is_retryable=False) from None
        raise


def _connected() -> McpServers:
    if (servers := _here.get(None)) is None:
        raise RuntimeError("there are no MCP servers here: run the loop inside of `async with servers.connected()`")
    return servers


def _readable(result: types.CallToolResult) -> pydantic.JsonValue:
    """The result of a call as JSON that a model can read.

    As `ai.mcp` has it, where that leaves nothing out: the structured content; or the one text, read as JSON if it is an
    object or a list. Anything else is a list of all parts: several texts, pictures, sounds, resources.
    """
    texts = [part.text for part in result.content if isinstance(part, types.TextContent)]
    others = [part for part in result.content if not isinstance(part, types.TextContent)]
    if result.isError:
        more = result.structuredContent or _json(others)
        return " ".join(texts) or (json.dumps(more) if more else "the server gives no reason")
    if (structured := result.structuredContent) is not None:
        return {"structuredContent": structured, "content": _json(others)} if others else structured
    return _value(texts[0]) if len(texts) == 1 and not others else _json(result.content)


def _json(parts: Sequence[types.ContentBlock]) -> list[pydantic.JsonValue]:
    # Without the metadata, which is for programs.
    return [part.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"meta"}) for part in parts]


def _value(text: str) -> pydantic.JsonValue:
    if text.startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            value: pydantic.JsonValue = json.loads(text)
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # what Python reads may still not be JSON
            return value
    return text
