"""Tools that stay unwrapped, since they need the `ai.run()` that they are called in: they run in the workflow."""

import base64
from collections.abc import AsyncGenerator, Callable

import vercel_ai_sdk as ai
from temporalio import workflow
from toolbox import TOOLS

from durable import TemporalLanguageModel
from options.gateway import GatewayModel

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def model() -> ai.LanguageModel:
    """The model of a tool that asks one: as for the agent, with or without Temporal."""
    make: Callable[[str], ai.LanguageModel] = TemporalLanguageModel if workflow.in_workflow() else GatewayModel
    return make("test/model")


@ai.stream
async def _story(about: str) -> AsyncGenerator[ai.Message]:
    for text in ("Once", f"Once there was a {about}."):
        yield ai.Message(id=f"story-{about}", role="assistant", parts=[ai.TextPart(text=text)], label="story")


@ai.tool
async def narrate(about: str) -> str:
    """Tell a story, word for word as it comes."""
    return (await _story(about)).text


@ai.tool
async def report_progress(steps: int, runtime: ai.Runtime) -> str:
    """Do something in steps, and tell of each."""
    for step in range(1, steps + 1):
        part = ai.TextPart(text=f"step {step} of {steps}")
        await runtime.put_message(ai.Message(id=f"step-{step}", role="assistant", parts=[part], label="progress"))
    return f"{steps} steps are done"


@ai.tool
async def announce(runtime: ai.Runtime, text: str = "hear, hear") -> None:
    """Say something beside the answer."""
    await runtime.put_message(ai.Message(id="said", role="assistant", parts=[ai.TextPart(text=text)], label="herald"))


async def _expert(llm: ai.LanguageModel, question: str) -> ai.StreamResult:
    return await ai.stream_loop(llm, ai.make_messages(user=question), TOOLS, label=f"expert for {question}")


@ai.tool
async def ask_expert(question: str) -> str:
    """Ask an agent, whose messages are part of this run."""
    return (await _expert(model(), question)).text


@ai.tool
async def ask_expert_apart(question: str) -> list[str]:
    """Ask an agent, whose messages are its own, and return the texts of all of them."""
    messages: dict[str, ai.Message] = {}
    async for message in ai.run(_expert, model(), question):
        messages[message.id] = message
    return [message.text for message in messages.values()]
