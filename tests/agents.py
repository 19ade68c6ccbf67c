"""Agents and workflows that the tests need beside the sample's own."""

import asyncio
import hashlib
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pydantic
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai
    from toolbox import TOOLS, Leg, pay, pay_somehow, pay_soon

    from activities import tool_call_activity
    from bridge.wire import ModelRequest, ToolCall, WireMessage
    from durable import TemporalLanguageModel, temporal_tool
    from options.approvals import ask_a_person_if
    from options.continuing import Carried, ContinuingModel
    from workflow import agent
    from workflow_types import AgentAnswer, AgentRequest


class Forecast(pydantic.BaseModel):
    city: str
    celsius: float


MUCH = 100


def undecided(amount: int) -> bool:
    """A rule with bugs: it fails, or comes to no result."""
    return None if amount else 1 / amount > 0  # type: ignore[return-value]  # that is the bug


# The sandbox makes these rules anew for every run, and finds the tools wrapped already.
temporal_tool(pay, before=ask_a_person_if(lambda amount, to: amount > MUCH or to != "the shop"))
temporal_tool(pay_soon, before=ask_a_person_if(lambda **call: call["amount"] > MUCH, timeout=timedelta(seconds=2)))
temporal_tool(pay_somehow, before=ask_a_person_if(undecided))


async def other_agent(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    messages = ai.make_messages(user=query)
    while True:
        result = await ai.stream_step(llm, messages, TOOLS)
        if not result.tool_calls:
            return result
        messages.append(result.messages[-1])
        await asyncio.gather(*(ai.execute_tool(call, result.messages[-1]) for call in result.tool_calls))


def _last_states(messages: list[ai.Message]) -> list[ai.Message]:
    """The messages of a run, each as it was in the end."""
    return list({message.id: message for message in messages}.values())


def progress_of(messages: list[ai.Message]) -> list[tuple[list[int], str]]:
    """Of each message: which of its tool calls have a result, and a digest of all that is in it."""
    return [
        (
            [i for i, call in enumerate(message.tool_calls) if call.status != "pending"],
            hashlib.sha256(message.model_dump_json(exclude={"id"}).encode()).hexdigest(),
        )
        for message in messages
    ]


async def transcript_of(run: ai.RunResult) -> list[ai.Message]:
    return _last_states([message async for message in run])


@workflow.defn
class TranscriptWorkflow:
    """The sample's agent; returns every message."""

    @workflow.run
    async def run(self, query: str) -> list[WireMessage]:
        return await transcript_of(ai.run(agent, TemporalLanguageModel("test/model"), query))


@workflow.defn
class OtherWorkflow:
    """The agent with the tools of toolbox.py."""

    @workflow.run
    async def run(self, query: str) -> list[WireMessage]:
        return await transcript_of(ai.run(other_agent, TemporalLanguageModel("test/model"), query))


@workflow.defn
class ImpatientWorkflow:
    """The sample's agent, with a model that is given up soon and tried again often. Returns the answer."""

    @workflow.run
    async def run(self, query: str) -> str:
        llm = TemporalLanguageModel(
            "test/model",
            idle_timeout=timedelta(seconds=1),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10), backoff_coefficient=1),
        )
        return (await transcript_of(ai.run(other_agent if query == "go" else agent, llm, query)))[-1].text


@workflow.defn
class AnswerWorkflow:
    """The same, but returns the answer only."""

    @workflow.run
    async def run(self, query: str) -> str:
        return (await transcript_of(ai.run(other_agent, TemporalLanguageModel("test/model"), query)))[-1].text


@workflow.defn
class PulsingWorkflow:
    """An agent with the tools of toolbox.py, and a heartbeat timeout of so many seconds for its model calls."""

    @workflow.run
    async def run(self, heartbeat_timeout: float) -> str:
        llm = TemporalLanguageModel(
            "test/model",
            heartbeat_timeout=timedelta(seconds=heartbeat_timeout),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10), backoff_coefficient=1),
        )
        return (await transcript_of(ai.run(other_agent, llm, "go")))[-1].text


@workflow.defn
class LaterWorkflow:
    """The same agent. Makes its first call when it is told to begin."""

    def __init__(self) -> None:
        self._told = False

    @workflow.run
    async def run(self, query: str) -> str:
        await workflow.wait_condition(lambda: self._told)
        return (await transcript_of(ai.run(other_agent, TemporalLanguageModel("test/model"), query)))[-1].text

    @workflow.signal
    def begin(self) -> None:
        self._told = True


@workflow.defn
class ProgressWorkflow:
    """The same agent. Returns what came out of `ai.run()`, step by step."""

    @workflow.run
    async def run(self, query: str) -> list[tuple[list[int], str]]:
        return progress_of([message async for message in ai.run(other_agent, TemporalLanguageModel("m"), query)])


@workflow.defn
class StructuredWorkflow:
    @workflow.run
    async def run(self, query: str) -> WireMessage:
        async def ask(llm: ai.LanguageModel) -> None:
            await ai.stream_step(llm, ai.make_messages(user=query), output_type=Forecast)

        return (await transcript_of(ai.run(ask, TemporalLanguageModel("test/model"))))[-1]


@workflow.defn
class LocalTypeWorkflow:
    """Asks for an answer of a type that only this function knows."""

    @workflow.run
    async def run(self) -> None:
        class Local(pydantic.BaseModel):
            city: str

        async def ask(llm: ai.LanguageModel) -> None:
            await ai.stream_step(llm, ai.make_messages(user="go"), output_type=Local)

        await transcript_of(ai.run(ask, TemporalLanguageModel("test/model")))


@workflow.defn
class LostToolWorkflow:
    """Calls a tool that no worker has, past all checks, and once."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(
            tool_call_activity,
            ToolCall(tool="lost", arguments={}),
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )


@workflow.defn
class SendWorkflow:
    """Sends the given messages to the model and returns its answer."""

    @workflow.run
    async def run(self, request: ModelRequest) -> WireMessage:
        async def ask(llm: ai.LanguageModel) -> None:
            await ai.stream_step(llm, request.messages)

        return (await transcript_of(ai.run(ask, TemporalLanguageModel("test/model"))))[-1]


@workflow.defn
class TwoAgentsWorkflow:
    """Two runs of the sample's agent at once, and two agents in one run."""

    @workflow.run
    async def run(self, queries: list[str]) -> list[str]:
        llm = TemporalLanguageModel("test/model")

        async def alone(query: str) -> str:
            return (await transcript_of(ai.run(agent, llm, query)))[-1].text

        answers: list[str] = []

        async def together() -> None:
            answers.extend(result.text for result in await asyncio.gather(*(agent(llm, query) for query in queries)))

        apart = await asyncio.gather(*(alone(query) for query in queries))
        await transcript_of(ai.run(together))
        return [*apart, *answers]


class LongRequest(pydantic.BaseModel):
    query: str
    carried: Carried | None = None


@workflow.defn
class LongWorkflow:
    """Any of the loops below, which continues as new soon. Returns the answer, and in how many model calls."""

    @workflow.run
    async def run(self, request: LongRequest) -> tuple[str, int]:
        llm = ContinuingModel("test/model", request, max_calls=20)

        async def two_at_once(llm: ai.LanguageModel, query: str) -> None:
            async def later() -> None:
                for _ in range(20):
                    await asyncio.sleep(0)
                await other_agent(llm, query)

            await asyncio.gather(other_agent(llm, query), later())

        async def with_an_example(llm: ai.LanguageModel, query: str) -> None:
            example = ai.Message(role="assistant", parts=[ai.TextPart(text="an answer, say")])
            await ai.stream_loop(
                llm, [*ai.make_messages(user="a question"), example, *ai.make_messages(user=query)], TOOLS
            )

        loops = {"two": two_at_once, "example": with_an_example}
        loop = loops.get(request.query, other_agent)
        run = ai.run(loop, llm, request.query, checkpoint=llm.checkpoint)
        return (await transcript_of(run))[-1].text, llm.calls


@workflow.defn
class PayingWorkflow:
    """An agent that pays, and returns its answer."""

    @workflow.run
    async def run(self) -> str:
        async def loop(llm: ai.LanguageModel) -> None:
            await ai.stream_loop(llm, ai.make_messages(user="go"), [pay, pay_soon, pay_somehow])

        return (await transcript_of(ai.run(loop, TemporalLanguageModel("test/model"))))[-1].text


@workflow.defn(name="AgentWorkflow")
class HurriedWorkflow:
    """The same for `main.py`, in the place of the sample's workflow."""

    @workflow.run
    async def run(self, request: AgentRequest) -> AgentAnswer:
        return AgentAnswer(text=await PayingWorkflow().run())


@workflow.defn
class ThriftyWorkflow:
    """An agent with a budget of tokens, which continues as new soon. Returns in how many model calls it is done."""

    @workflow.run
    async def run(self, request: LongRequest) -> int:
        llm = ContinuingModel("test/model", request, max_tokens=60)
        await transcript_of(ai.run(other_agent, llm, request.query, checkpoint=llm.checkpoint))
        return llm.calls


@workflow.defn
class BrokenWorkflow:
    """A loop with a bug."""

    @workflow.run
    async def run(self) -> None:
        async def loop(llm: ai.LanguageModel) -> None:
            nothing: Any = None
            nothing.attribute  # noqa: B018

        await transcript_of(ai.run(loop, TemporalLanguageModel("test/model")))


@workflow.defn
class DirectWorkflow:
    """A loop that calls tools itself, past `ai.execute_tool`."""

    @workflow.run
    async def run(self) -> list[object]:
        counted = await TOOLS[0](legs=[Leg(start="a", end="b")])
        try:
            await TOOLS[1](reason="directly")
        except ValueError as error:
            return [counted, str(error)]
        raise AssertionError


@workflow.defn
class WaitingWorkflow:
    """A loop that begins with a tool, and then waits for other things too."""

    @workflow.run
    async def run(self) -> str:
        async def loop(llm: ai.LanguageModel) -> None:
            await TOOLS[0](legs=[])
            first = await ai.stream_step(llm, ai.make_messages(user="go"), TOOLS)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await ai.execute_tool(first.tool_calls[0])
            await ai.stream_step(llm, ai.make_messages(user="go on"))

        return (await transcript_of(ai.run(loop, TemporalLanguageModel("test/model"))))[-1].text


@workflow.defn
class OwnQueryWorkflow:
    """Has a query that the bridge has too."""

    @workflow.run
    async def run(self) -> None:
        await transcript_of(ai.run(other_agent, TemporalLanguageModel("test/model"), "go"))

    @workflow.query
    def transcript(self) -> str:
        return "its own"


@workflow.defn
class AgainWorkflow:
    """Continues as new from inside of its loop."""

    @workflow.run
    async def run(self, times: int) -> str:
        async def loop() -> None:
            if times:
                workflow.continue_as_new(times - 1)

        await transcript_of(ai.run(loop))
        return "done"


@workflow.defn
class HastyWorkflow:
    """Calls a tool that needs an approval, but does not wait for it."""

    @workflow.run
    async def run(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await TOOLS[5](door="front")


@workflow.defn
class ShortOfTimeWorkflow:
    """The agent, with two seconds for each answer of the model and quick retries."""

    @workflow.run
    async def run(self, query: str) -> str:
        llm = TemporalLanguageModel(
            "test/model",
            start_to_close_timeout=timedelta(seconds=2),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10), backoff_coefficient=1),
        )
        return (await transcript_of(ai.run(other_agent, llm, query)))[-1].text


@workflow.defn
class FailingWorkflow:
    """A loop that fails in several ways at once."""

    @workflow.run
    async def run(self) -> None:
        async def loop() -> None:
            inner = ExceptionGroup("inner", [ApplicationError("the weighty one", type="Weighty")])
            raise ExceptionGroup("outer", [ValueError("the light one"), inner])

        await transcript_of(ai.run(loop))


@workflow.defn
class NamesWorkflow:
    """Has attributes of its own, with names that the bridge might take."""

    @workflow.run
    async def run(self) -> str:
        self._conversation, self._desk, self._doing = "its own", [1], None
        llm = TemporalLanguageModel("test/model")
        messages = await transcript_of(ai.run(other_agent, llm, "go"))
        assert (self._conversation, self._desk, self._doing) == ("its own", [1], None)
        return messages[-1].text


WORKFLOWS = [
    PayingWorkflow,
    ThriftyWorkflow,
    NamesWorkflow,
    PulsingWorkflow,
    LaterWorkflow,
    ProgressWorkflow,
    TranscriptWorkflow,
    OtherWorkflow,
    ImpatientWorkflow,
    AnswerWorkflow,
    StructuredWorkflow,
    LocalTypeWorkflow,
    LostToolWorkflow,
    SendWorkflow,
    TwoAgentsWorkflow,
    LongWorkflow,
    BrokenWorkflow,
    DirectWorkflow,
    WaitingWorkflow,
    OwnQueryWorkflow,
    AgainWorkflow,
    HastyWorkflow,
    ShortOfTimeWorkflow,
    FailingWorkflow,
]
