"""The tools of this process, wrapped by `temporal_tool()`, and the tools of single runs, which come from MCP servers.

The SDK has one registry of tools in each process, by name: `ai.execute_tool` looks up the tool of a call in it.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, override

import vercel_ai_sdk as ai
from temporalio import workflow
from temporalio.exceptions import ApplicationError
from vercel_ai_sdk.core.runtime import _runtime  # private: the `ai.run()` that tools belong to
from vercel_ai_sdk.core.tools import _tool_registry  # private: `temporal_tool()` replaces a tool under its name

from bridge.of_run import of_run
from bridge.wire import ToolSpec

# ── Of the process ───────────────────────────────────────────────────────────────────────────────────────

tool_functions: dict[str, Callable[..., Awaitable[object]]] = {}
"""The original functions of the wrapped tools, by the name that the model knows. `temporal_tool()` fills it when a
module is imported, so that every worker has every tool, also a worker that never ran the workflow."""

_wrapped: dict[str, tuple[object, ai.Tool[..., Any]]] = {}
"""By the tool's name: the arguments of `temporal_tool()`, and the wrapper that came of them."""


def wrapped_already(name: str, arguments: object) -> ai.Tool[..., Any] | None:
    """The wrapper that the same arguments have made of a tool: the sandbox imports workflow files anew for every run.

    Raises:
        TypeError: A tool of this name was wrapped with other arguments.
    """
    if name not in _wrapped:
        return None
    earlier, wrapper = _wrapped[name]
    if earlier == arguments:
        return wrapper
    raise TypeError(
        f"a tool called {name} is wrapped already, with other options or as another tool. If it is this one, import "
        "the files that define it and its `before` with workflow.unsafe.imports_passed_through(), or the sandbox makes "
        "others for every run"
    )


def original_function[**P, R](tool: ai.Tool[P, R]) -> Callable[P, Awaitable[R]]:
    """The function that `@ai.tool` was put on.

    Raises:
        TypeError: It is no async function; or it takes an `ai.Runtime`, which lives in the workflow.
    """
    function = tool._fn  # private: a Tool does not show the function it was made of
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise TypeError(
            f"{tool.name} is not an async function that returns its result: write `async def`, and put blocking code "
            "into `asyncio.to_thread()`; a tool that yields messages stays unwrapped"
        )
    if any(parameter.annotation is ai.Runtime for parameter in signature_of(function).parameters.values()):
        raise TypeError(f"{tool.name} takes an ai.Runtime, which an activity cannot have; unwrapped it works")
    return function


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature, with annotations that are no strings."""
    return inspect.signature(function, eval_str=True)


def typed_arguments(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a tool call as the tool's function gets them: of the declared types, with the defaults.

    Raises:
        ValidationError: They do not fit.
    """
    validator = _tool_registry[name]._validator  # private: as with `_fn`; None for the tool of an MCP server
    if validator is None:
        return arguments
    typed = validator.model_validate(arguments)
    return arguments | {field: getattr(typed, field) for field in validator.model_fields}


def replace_tool[**P, R](tool: ai.Tool[P, R], function: Callable[P, Awaitable[R]], arguments: object) -> ai.Tool[P, R]:
    """Make a tool of the same name and schema with another function, and put it into the SDK's registry."""
    wrapper = ai.Tool(fn=function, schema=tool.schema, validator=tool._validator)  # private: as with `_fn`
    _tool_registry[tool.name] = wrapper
    _wrapped[tool.name] = arguments, wrapper
    return wrapper


def check_wrappers() -> None:
    """See that no tool has taken the place of a wrapped one: its I/O would happen in the workflow.

    The tools of the run are put back where one has taken theirs.

    Raises:
        ApplicationError: One has, since it was defined with the same name.
    """
    for name, (_, wrapper) in _wrapped.items():
        registered = _tool_registry[name]
        if (registered.otherwise if isinstance(registered, _ByRun) else registered) is not wrapper:
            raise ApplicationError(
                f"another tool called {name} was defined after temporal_tool(), so that calls of {name} would not be "
                "durable: rename one of them, or define it once, in a module that is passed through",
                type="ToolReplaced",
                non_retryable=True,
            )
    for table in _tables():
        for _, tool in table.values():
            _register(tool)


# ── Of a run ─────────────────────────────────────────────────────────────────────────────────────────────


class _Table(dict[str, tuple[str, ai.Tool[..., Any]]]):
    """Tools that only one run has: where each is from, and the tool, by the name that the model knows."""


class _ByRun(ai.Tool[..., Any]):
    """Stands in the registry for all tools of a name that single runs have, and calls that of the current run.

    A run that has none gets the tool that was there before.
    """

    def __init__(self, schema: ai.ToolSchema, otherwise: ai.Tool[..., Any] | None) -> None:
        async def call(**arguments: Any) -> Any:
            return await self._tool()(**arguments)

        super().__init__(call, schema)
        self.otherwise = otherwise

    @override
    async def validate_and_call(self, json_str: str, runtime: ai.Runtime | None) -> Any:
        return await self._tool().validate_and_call(json_str, runtime)

    def _tool(self) -> ai.Tool[..., Any]:
        for table in _tables():
            if self.name in table:
                return table[self.name][1]
        if self.otherwise is None:
            raise ValueError(f"this run has no tool {self.name}")
        return self.otherwise


def add_to_run(tools: Iterable[ai.Tool[..., Any]], source: str) -> None:
    """Have `ai.execute_tool` find these tools in the current `ai.run()`, or else in the current workflow run.

    Args:
        tools: They replace tools of the same source and name, and hide those of the process.
        source: Where they are from, in the words of a user.

    Raises:
        ApplicationError: The run has a tool of one of the names from elsewhere.
        RuntimeError: There is no run.
    """
    table = next(iter(_tables()), None)
    if table is None:
        raise RuntimeError(f"the tools of {source} are for a loop: ask for them inside of ai.run(), or in a workflow")
    for tool in tools:
        other, _ = table.setdefault(tool.name, (source, tool))
        if other != source:
            raise ApplicationError(
                f"{other} and {source} both have a tool {tool.name!r}: give one of them a prefix",
                type="ToolNames",
                non_retryable=True,
            )
        table[tool.name] = source, tool
        _register(tool)


def _register(tool: ai.Tool[..., Any]) -> None:
    registered = _tool_registry.get(tool.name)
    if not isinstance(registered, _ByRun):
        _tool_registry[tool.name] = _ByRun(tool.schema, otherwise=registered)


def _tables() -> Iterable[_Table]:
    if (runtime := _runtime.get(None)) is not None:
        # In the object itself, so that they go with it, and no other run of the process can see them.
        yield vars(runtime).setdefault("__tools_of_run__", _Table())
    if workflow.in_workflow():
        yield of_run(_Table)


def specs_of(tools: Iterable[ai.ToolLike]) -> list[ToolSpec]:
    """The tools as a model is told of them.

    Raises:
        ApplicationError: Two have the same name. Nobody could tell which of them the model calls.
    """
    specs = [ToolSpec(name=t.name, description=t.description, param_schema=t.param_schema) for t in tools]
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        problem = f"the model is offered two tools called {twice[0]!r}"
        raise ApplicationError(problem, type="ToolNames", non_retryable=True)
    return specs
