"""Shows sub-agents as child workflows: each has a history of its own, and outlives the worker that began it."""

import asyncio

import vercel_ai_sdk as ai
from shared import QUEUE, calls, make_worker, results, run, says, scripted
from temporalio import workflow
from temporalio.client import Client
from temporalio.exceptions import ChildWorkflowError

from bridge.failures import ToolError
from bridge.wire import text_of
from durable import TemporalLanguageModel


async def researcher(llm: ai.LanguageModel, topic: str) -> ai.StreamResult:
    return await ai.stream_loop(llm, ai.make_messages(user=topic), [])


@workflow.defn
class ResearcherWorkflow:
    @workflow.run
    async def run(self, topic: str) -> str:
        return [text_of(message) async for message in ai.run(researcher, TemporalLanguageModel("researcher"), topic)][
            -1
        ]


@ai.tool
async def research(topic: str) -> str:
    """Have a researcher write about a topic."""
    # Not wrapped: only a workflow can start children.
    try:
        return await workflow.execute_child_workflow(ResearcherWorkflow.run, topic, id=f"{QUEUE}-{topic}")
    except ChildWorkflowError as error:  # for the model to read; anything else would end this run, too
        raise ToolError(f"the researcher of {topic} failed: {error.cause}") from error


async def editor(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    return await ai.stream_loop(llm, ai.make_messages(user=query), [research])


@workflow.defn
class EditorWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        answer = ""
        async for message in ai.run(editor, TemporalLanguageModel("editor"), query):
            answer = text_of(message)
        return answer


asked: list[str] = []
both_asked = asyncio.Event()


async def script(model: str, messages: list[ai.Message]) -> ai.Message:
    done = results(messages)
    if model == "editor":
        return says("; ".join(done)) if done else calls("research", {"topic": "whales"}, {"topic": "ravens"})
    topic = messages[0].text
    asked.append(topic)
    print(f"  the {model} of {topic} is asked, attempt {asked.count(topic)}")
    if len(asked) == 2:
        both_asked.set()
    if asked.count(topic) == 1:
        await asyncio.sleep(3600)  # until the worker is stopped
    return says(f"all about {topic}")


async def main(client: Client) -> None:
    async with make_worker(client, EditorWorkflow, ResearcherWorkflow):
        handle = await client.start_workflow(EditorWorkflow.run, "Animals", id=QUEUE, task_queue=QUEUE)
        await both_asked.wait()
    print("The worker is stopped, and three workflows are under way. Another worker goes on:")
    async with make_worker(client, EditorWorkflow, ResearcherWorkflow):
        print(await handle.result())


if __name__ == "__main__":
    run(main, scripted(script))
