"""Loops of all the kinds that the SDK is made for, and a workflow that runs any of them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pydantic
from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai
    from in_process import PIXEL, announce, ask_expert, ask_expert_apart, narrate, report_progress
    from toolbox import TOOLS

    from bridge.wire import WireMessage
    from durable import TemporalLanguageModel

type Loop = Callable[..., Coroutine[Any, Any, Any]]


async def simple(llm: ai.LanguageModel) -> None:
    """The SDK's own loop."""
    await ai.stream_loop(llm, ai.make_messages(system="Be brief.", user="simple"), TOOLS, label="simple")


async def custom(llm: ai.LanguageModel) -> None:
    """One tool call after the other, and a last turn without tools."""
    messages = ai.make_messages(user="custom")
    for turn in ("first", "second"):
        result = await ai.stream_step(llm, messages, TOOLS, label=turn)
        answer = result.messages[-1]
        messages.append(answer)
        for call in result.tool_calls:
            await ai.execute_tool(call, answer)
    await ai.stream_step(llm, [*messages, *ai.make_messages(user="and now, in short")], label="last")


async def parallel(llm: ai.LanguageModel) -> None:
    """Two agents at once, told apart by their labels, and a third one that reads what they said."""
    said = await asyncio.gather(
        *(ai.stream_loop(llm, ai.make_messages(user=name), TOOLS, label=name) for name in ("north", "south"))
    )
    both = " / ".join(result.text for result in said)
    await ai.stream_loop(llm, ai.make_messages(user=f"sum up: {both}"), TOOLS, label="sum")


class Verdict(pydantic.BaseModel):
    good: bool
    reasons: list[str] = []


async def structured(llm: ai.LanguageModel) -> None:
    """Tools first, and then an answer of a type, which is asked about in the next turn."""
    messages = ai.make_messages(user="structured")
    result = await ai.stream_loop(llm, messages, TOOLS, label="judge", output_type=Verdict)
    verdict: Verdict = result.output
    await ai.stream_step(llm, ai.make_messages(user=f"why {verdict.good}? {verdict.reasons}"), label="defend")


async def pictures(llm: ai.LanguageModel) -> None:
    """A picture goes in as bytes, and one as an address; one comes out, and goes in again."""
    picture = ai.FilePart.from_bytes(PIXEL, filename="pixel.png")
    address = ai.FilePart.from_url("data:image/png;base64,aGVsbG8=")
    question = ai.Message(role="user", parts=[ai.TextPart(text="pictures"), picture, address])
    result = await ai.stream_step(llm, [question], label="draw")
    messages = [question, result.messages[-1], *ai.make_messages(user="what is on it?")]
    await ai.stream_step(llm, messages, label="look")


async def streaming_tool(llm: ai.LanguageModel) -> None:
    """A tool that is itself a stream of messages."""
    await ai.stream_loop(llm, ai.make_messages(user="streaming tool"), [narrate], label="caller")


async def runtime_tool(llm: ai.LanguageModel) -> None:
    """Tools that take the `ai.Runtime`, and put messages on its queue, beside one that is an activity."""
    await ai.stream_loop(
        llm, ai.make_messages(user="runtime tool"), [report_progress, announce, TOOLS[0]], label="main"
    )


async def agent_as_tool(llm: ai.LanguageModel) -> None:
    """A tool that runs an agent of its own in the same `ai.run()`, and one that has an `ai.run()` of its own."""
    await ai.stream_loop(llm, ai.make_messages(user="agent as a tool"), [ask_expert, ask_expert_apart], label="main")


@ai.stream
async def greeting() -> AsyncGenerator[ai.Message]:
    for text in ("wel", "welcome"):
        yield ai.Message(id="greeting", role="assistant", parts=[ai.TextPart(text=text)], label="greeting")


async def own_step(llm: ai.LanguageModel) -> None:
    """A step of the loop's own, which is no model call."""
    said = await greeting()
    await ai.stream_step(llm, ai.make_messages(user=f"after {said.text}"), label="after")


LOOPS: dict[str, Loop] = {
    loop.__name__: loop
    for loop in (
        simple,
        custom,
        parallel,
        structured,
        pictures,
        streaming_tool,
        runtime_tool,
        agent_as_tool,
        own_step,
    )
}


async def transcript(loop: str, make_model: Callable[[], ai.LanguageModel]) -> list[ai.Message]:
    """What came out of `ai.run()`: each message as it was in the end, in the order in which they began."""
    messages: dict[str, ai.Message] = {}
    async for message in ai.run(LOOPS[loop], make_model()):
        messages[message.id] = message
    return [*messages.values()]


@workflow.defn
class LoopWorkflow:
    @workflow.run
    async def run(self, loop: str) -> list[WireMessage]:
        return await transcript(loop, lambda: TemporalLanguageModel("test/model"))
