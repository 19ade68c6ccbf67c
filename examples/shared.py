"""What the examples share: a scripted model, and a Temporal server and a worker for as long as an example runs."""

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import override

import pydantic
import vercel_ai_sdk as ai
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where durable.py and the rest of the sample are

from app.output import UserError, set_up_logging
from app.server import temporal_server
from plugin import DurableAgents

QUEUE = f"example-{uuid.uuid4().hex[:8]}"

type Script = Callable[[str, list[ai.Message]], Awaitable[ai.Message]]
"""Answers a model call: from the name of the model and the messages so far."""


class ScriptedModel(ai.LanguageModel):
    """In the place of a real model, so that no key is needed."""

    def __init__(self, script: Script, name: str) -> None:
        self._script, self._name = script, name

    @override
    async def stream(
        self,
        messages: list[ai.Message],
        tools: Sequence[ai.ToolLike] | None = None,
        output_type: type[pydantic.BaseModel] | None = None,
    ) -> AsyncGenerator[ai.Message]:
        message = await self._script(self._name, messages)
        if output_type:  # raises an error if the text is no such JSON
            data = output_type.model_validate_json(message.text).model_dump(mode="json")
            name = f"{output_type.__module__}.{output_type.__qualname__}"
            message.parts.append(ai.StructuredOutputPart(data=data, output_type_name=name))
        yield message


def says(text: str) -> ai.Message:
    """An answer of the model in text."""
    return ai.Message(role="assistant", parts=[ai.TextPart(text=text)])


def calls(tool: str, *arguments: dict[str, object]) -> ai.Message:
    """An answer of the model that calls a tool, once with each of the arguments."""
    parts: list[ai.Part] = [
        ai.ToolPart(tool_call_id=f"{tool}-{number}", tool_name=tool, tool_args=json.dumps(each))
        for number, each in enumerate(arguments)
    ]
    return ai.Message(role="assistant", parts=parts)


def results(messages: list[ai.Message]) -> list[str]:
    """What the tool calls in a conversation came to."""
    return [str(part.result) for message in messages for part in message.tool_calls]


def make_worker(client: Client, *workflows: type) -> Worker:
    """A worker for an example. The sandbox would load the file of a workflow anew for every run, and the tools in it,
    too. So it is off here, where all stands in one file; elsewhere tools have a file of their own."""
    return Worker(client, task_queue=QUEUE, workflows=workflows, workflow_runner=UnsandboxedWorkflowRunner())


def scripted(script: Script) -> Callable[[str], ai.LanguageModel]:
    """Make the worker's models of a script."""
    return partial(ScriptedModel, script)


def run(example: Callable[[Client], Awaitable[None]], make_model: Callable[[str], ai.LanguageModel]) -> None:
    """Run an example with the Temporal server that the environment names, or a dev server, and end the process."""

    async def with_server() -> None:
        async with temporal_server(DurableAgents(make_model)) as server:
            await example(server.client)

    set_up_logging(debug=False)  # without tracebacks of failed attempts, which are tried again
    status = 0
    try:
        asyncio.run(with_server())
    except (UserError, KeyboardInterrupt) as error:
        print(f"Error: {error}" if isinstance(error, UserError) else "Interrupted.", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    os._exit(status)  # the Temporal runtime may crash an interpreter that takes itself down
