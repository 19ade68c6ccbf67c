"""Shows agents as tools: two sub-agents work at once, in the workflow of the agent that calls them."""

import asyncio

import vercel_ai_sdk as ai
from shared import QUEUE, calls, make_worker, results, run, says, scripted
from temporalio import workflow
from temporalio.client import Client

from bridge.wire import text_of
from durable import TemporalLanguageModel, temporal_tool


@ai.tool
async def search(topic: str) -> str:
    """Search the library for a topic."""
    return f"a book about {topic}"


temporal_tool(search)  # does I/O, so it is an activity


async def researcher(llm: ai.LanguageModel, topic: str) -> ai.StreamResult:
    return await ai.stream_loop(llm, ai.make_messages(user=topic), [search])


@ai.tool
async def research(topic: str) -> str:
    """Have a researcher write about a topic."""
    # Not wrapped: this runs in the workflow, and the calls of the sub-agent are activities. It has an `ai.run()` of its
    # own, since a single one makes one model call after the other.
    report = ""
    async for message in ai.run(researcher, TemporalLanguageModel("researcher"), topic):
        report = text_of(message)
    return report


async def editor(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    return await ai.stream_loop(llm, ai.make_messages(user=query), [research])


@workflow.defn
class EditorWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        answer = ""
        async for message in ai.run(editor, TemporalLanguageModel("editor", max_tokens=10_000), query):
            answer = text_of(message)
        return answer


async def script(model: str, messages: list[ai.Message]) -> ai.Message:
    done = results(messages)
    if model == "editor":
        return says("; ".join(done)) if done else calls("research", {"topic": "whales"}, {"topic": "ravens"})
    topic = messages[0].text
    print(f"  the {model} of {topic} is asked")
    await asyncio.sleep(0.5)
    print(f"  the {model} of {topic} answers")
    return says(f"{topic}: {done[0]}") if done else calls("search", {"topic": topic})


async def main(client: Client) -> None:
    async with make_worker(client, EditorWorkflow):
        print(await client.execute_workflow(EditorWorkflow.run, "Animals", id=QUEUE, task_queue=QUEUE))


if __name__ == "__main__":
    run(main, scripted(script))
