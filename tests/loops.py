"""Loops that fail in the SDK's own ways, or make models of several kinds."""

import asyncio
import json

import pydantic
from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import httpx
    import vercel_ai_sdk as ai
    from agents import Forecast

    from durable import TemporalLanguageModel


@ai.tool
async def fetch(url: str) -> str:
    """Fetch a page. (Not wrapped, by mistake.)"""
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(url)).text


@ai.tool
async def in_a_thread(text: str) -> str:
    """Do something that blocks. (Not wrapped, by mistake.)"""
    return await asyncio.to_thread(str.upper, text)


async def ask_again(llm: ai.LanguageModel) -> list[str]:
    """Ask for structured output until it is right, around `ai.run()` or without it."""
    messages, problems = ai.make_messages(user="the weather"), list[str]()
    while True:
        try:
            async for _ in llm.stream(messages, output_type=Forecast):
                pass
            return problems
        except (json.JSONDecodeError, pydantic.ValidationError) as error:
            problems.append(f"{type(error).__name__}: {error}")


async def ask_once(llm: ai.LanguageModel) -> None:
    await ai.stream_step(llm, ai.make_messages(user="the weather"), output_type=Forecast)


async def run_again(llm: ai.LanguageModel) -> list[str]:
    problems = list[str]()
    while True:
        try:
            async for _ in ai.run(ask_once, llm):
                pass
            return problems
        except* (json.JSONDecodeError, pydantic.ValidationError) as group:
            problems += [f"{type(error).__name__}: {error}" for error in group.exceptions]


@workflow.defn
class AskAgain:
    @workflow.run
    async def run(self, around: bool) -> list[str]:
        llm = TemporalLanguageModel("test/model")
        return await (run_again if around else ask_again)(llm)


@workflow.defn
class AskOnce:
    @workflow.run
    async def run(self) -> None:
        async for _ in ai.run(ask_once, TemporalLanguageModel("test/model")):
            pass


async def with_unwrapped_tools(llm: ai.LanguageModel) -> None:
    await ai.stream_loop(llm, ai.make_messages(user="go"), [fetch, in_a_thread])


@workflow.defn
class Unwrapped:
    @workflow.run
    async def run(self) -> None:
        async for _ in ai.run(with_unwrapped_tools, TemporalLanguageModel("test/model")):
            pass


async def io_in_the_loop(llm: ai.LanguageModel) -> None:
    await asyncio.open_connection("127.0.0.1", 9)


@workflow.defn
class IoInTheLoop:
    @workflow.run
    async def run(self) -> None:
        async for _ in ai.run(io_in_the_loop, TemporalLanguageModel("test/model")):
            pass


async def two_models(fast: ai.LanguageModel, slow: ai.LanguageModel) -> None:
    """A poet and a critic, and then both again."""
    poem, verdict = ai.make_messages(user="write"), ai.make_messages(user="judge")
    for _ in range(2):
        said = await ai.stream_step(fast, poem, label="poet")
        poem += [said.messages[-1], *ai.make_messages(user="more")]
        judged = await ai.stream_step(slow, verdict, label="critic")
        verdict += [judged.messages[-1], *ai.make_messages(user="and now?")]


@workflow.defn
class TwoModels:
    @workflow.run
    async def run(self) -> None:
        models = TemporalLanguageModel("test/fast"), TemporalLanguageModel("test/slow")
        async for _ in ai.run(two_models, *models):
            pass


WORKFLOWS = [AskAgain, AskOnce, Unwrapped, IoInTheLoop, TwoModels]
