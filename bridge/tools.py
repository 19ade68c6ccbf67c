"""The tools that are wrapped in this process: their original functions for the activity, and refusals."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import vercel_ai_sdk as ai
from temporalio.exceptions import ApplicationError
from vercel_ai_sdk.core.tools import _tool_registry  # private: `temporal_tool()` replaces a tool under its name

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

    Raises:
        ApplicationError: One has, since it was defined with the same name.
    """
    for name, (_, wrapper) in _wrapped.items():
        if _tool_registry[name] is not wrapper:
            raise ApplicationError(
                f"another tool called {name} was defined after temporal_tool(), so that calls of {name} would not be "
                "durable: rename one of them, or define it once, in a module that is passed through",
                type="ToolReplaced",
                non_retryable=True,
            )
