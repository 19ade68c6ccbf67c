"""Loops with hooks, as one writes them for the SDK alone, and the workflows that run them."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

import pydantic
from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai
    from toolbox import TOOLS

    from bridge.wire import WireMessage
    from durable import TemporalLanguageModel
    from options.continuing import Carried, ContinuingModel
    from options.hooks import temporal_hooks


class Permit(pydantic.BaseModel):
    """Whether something may be done."""

    granted: bool
    reason: str | None = None


class Money(pydantic.BaseModel):
    """How much something may cost."""

    amount: int = pydantic.Field(gt=0)
    currency: str = "EUR"


# Not as decorators, which type checkers do not take for what they are.
Permission, Budget = ai.hook(Permit), ai.hook(Money)
ToolApproval = cast(type[ai.Hook[ai.ToolApproval]], ai.ToolApproval)

temporal_hooks()


async def careful_agent(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    """Asks before each tool call, for all calls of a turn at once."""
    messages = ai.make_messages(user=query)
    while True:
        result = await ai.stream_step(llm, messages, TOOLS)
        if not result.tool_calls:
            return result
        message = result.messages[-1]
        messages.append(message)

        async def ask_and_call(call: ai.ToolPart, message: ai.Message = message) -> None:
            asked = {"tool": call.tool_name, "arguments": call.tool_args}
            answer = await Permission.create(f"approve_{call.tool_call_id}", metadata=asked)
            if answer.granted:
                await ai.execute_tool(call, message)
            else:
                call.set_error(f"not allowed: {answer.reason}")

        await asyncio.gather(*(ask_and_call(call) for call in result.tool_calls))


@workflow.defn
class CarefulWorkflow:
    """`careful_agent`. Returns every message as it came."""

    @workflow.run
    async def run(self, query: str) -> list[WireMessage]:
        return [message async for message in ai.run(careful_agent, TemporalLanguageModel("test/model"), query)]


class Asked(pydantic.BaseModel):
    """Hooks to be asked at once."""

    labels: list[str]
    metadata: dict[str, Any] = {}
    patience: float | None = None
    """Seconds; after that the loop gives them up."""


@workflow.defn
class AskingWorkflow:
    """Asks whether something is permitted, before anything else is done. Returns the answers, or how it ended."""

    def __init__(self) -> None:
        self._go_on = False

    @workflow.run
    async def run(self, asked: Asked) -> list[str]:
        answers: list[str] = []

        async def ask(label: str) -> str:
            try:
                answer = await ToolApproval.create(label, metadata=asked.metadata)
            except asyncio.CancelledError as error:
                return f"cancelled: {error}"
            return f"{answer.granted}: {answer.reason}"

        async def loop() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(asked.patience):
                    answers.extend(await asyncio.gather(*map(ask, asked.labels)))
            if asked.patience is not None:
                await workflow.wait_condition(lambda: self._go_on)

        async for _ in ai.run(loop):
            pass
        return answers

    @workflow.signal
    def go_on(self) -> None:
        self._go_on = True

    @workflow.signal
    def resolve(self, label: str) -> None:
        ToolApproval.resolve(label, {"granted": True, "reason": "by signal"})


class LongRequest(pydantic.BaseModel):
    query: str
    carried: Carried | None = None


@workflow.defn
class LongWorkflow:
    """Continues as new, with hooks that are resolved, one whose label is used each turn, and one that stays open."""

    @workflow.run
    async def run(self, request: LongRequest) -> list[Any]:
        llm = ContinuingModel("test/model", request)
        answers: list[Any] = []

        async def converse(llm: ai.LanguageModel, query: str) -> None:
            first = await Permission.create("begin")
            answers.append(first.reason)
            messages = ai.make_messages(user=query)
            while True:
                result = await ai.stream_step(llm, messages, TOOLS)
                if not result.tool_calls:
                    return
                messages.append(result.messages[-1])
                await ai.execute_tool(result.tool_calls[0], result.messages[-1])
                budget = await Budget.create("turn")
                answers.append(budget.amount)

        async def loop(llm: ai.LanguageModel, query: str) -> None:
            _, last = await asyncio.gather(converse(llm, query), Permission.create("end"))
            answers.append(last.reason)

        async for _ in ai.run(loop, llm, request.query, checkpoint=llm.checkpoint):
            pass
        return answers


@workflow.defn
class HookLaterWorkflow:
    """Waits for a hook after a model call. Returns why it was permitted."""

    @workflow.run
    async def run(self) -> str | None:
        reasons: list[str | None] = []

        async def loop(llm: ai.LanguageModel) -> None:
            await ai.stream_step(llm, ai.make_messages(user="go"))
            answer = await Permission.create("later")
            reasons.append(answer.reason)

        async for _ in ai.run(loop, TemporalLanguageModel("test/model")):
            pass
        return reasons[0]


@workflow.defn
class EarlyWorkflow:
    """Resolves a hook that is not there yet, as one does without a process that waits. Returns why it was permitted."""

    @workflow.run
    async def run(self, reason: str) -> str | None:
        reasons: list[str | None] = []

        async def loop() -> None:
            answer = await Permission.create("same")
            reasons.append(answer.reason)

        Permission.resolve("same", {"granted": True, "reason": reason})
        async for _ in ai.run(loop):
            pass
        return reasons[0]


@workflow.defn
class TwoLoopsWorkflow:
    """Two loops at once, which use one label one after the other. Returns why it was permitted."""

    @workflow.run
    async def run(self) -> list[str | None]:
        reasons: list[str | None] = []

        async def first() -> None:
            reasons.append((await Permission.create("same")).reason)
            await Permission.create("last")

        async def second() -> None:
            await Permission.create("begin")
            reasons.append((await Permission.create("same")).reason)

        async def drive(loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
            async for _ in ai.run(loop):
                pass

        await asyncio.gather(drive(first), drive(second))
        return reasons


WORKFLOWS = [CarefulWorkflow, AskingWorkflow, LongWorkflow, HookLaterWorkflow, EarlyWorkflow, TwoLoopsWorkflow]
