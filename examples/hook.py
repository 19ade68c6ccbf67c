"""Shows a hook of the SDK in a workflow: an agent that asks a person before each tool call. Needs no key and no server.

`answer_questions()` is the person. It may as well run in another process, days later."""

import asyncio
import os
import sys
from typing import Any, cast

from temporalio import workflow
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

with workflow.unsafe.imports_passed_through():
    import vercel_ai_sdk as ai

    from app import demo
    from app.server import temporal_server
    from bridge.wire import text_of
    from durable import TemporalLanguageModel, temporal_tool
    from options.gateway import GatewayModel
    from options.hooks import RESOLVE_HOOK, HookResolution, open_hooks, temporal_hooks
    from plugin import DurableAgents
    from tools import get_weather

temporal_hooks()  # from now on each workflow run has hooks of its own, and waits for them
temporal_tool(get_weather)
ToolApproval = cast(type[ai.Hook[ai.ToolApproval]], ai.ToolApproval)  # the SDK's; type checkers take it for its schema


async def careful_agent(llm: ai.LanguageModel, query: str) -> ai.StreamResult:
    messages = ai.make_messages(user=query)
    while (result := await ai.stream_step(llm, messages, [get_weather])).tool_calls:
        messages.append(result.messages[-1])
        await asyncio.gather(*(ask_and_call(call, result.messages[-1]) for call in result.tool_calls))
    return result


async def ask_and_call(call: ai.ToolPart, message: ai.Message) -> None:
    answer = await ToolApproval.create(f"approve_{call.tool_call_id}", metadata={"arguments": call.tool_args})
    if answer.granted:
        await ai.execute_tool(call, message)
    else:
        call.set_error(f"a person did not allow it: {answer.reason}")


@workflow.defn
class CarefulWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        async for message in ai.run(careful_agent, TemporalLanguageModel("offline/demo"), query):
            text = text_of(message)
        return text


async def answer_questions(handle: WorkflowHandle[Any, str]) -> None:
    async for _ in handle.fetch_history_events(wait_new_event=True):
        for label, hook in open_hooks(await (await handle.describe()).memo()).items():
            answer = {"granted": "Tokyo" in hook.metadata, "reason": "only Tokyo is allowed"}
            print(f"{hook.type} {label} {hook.metadata}: {answer}")
            await handle.execute_update(RESOLVE_HOOK, HookResolution(label=label, resolution=answer))


async def main() -> None:
    with demo.serve() as url:
        os.environ.update(demo.environment(url))
        async with (
            temporal_server(DurableAgents(GatewayModel)) as server,
            Worker(server.client, task_queue="hooks", workflows=[CarefulWorkflow]),
        ):
            query, name = "What is the weather in Tokyo and in Paris?", f"hooks-{os.getpid()}"
            handle = await server.client.start_workflow(CarefulWorkflow.run, query, id=name, task_queue="hooks")
            await answer_questions(handle)
            print(await handle.result(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
    os._exit(0)  # the Temporal runtime may crash an interpreter that takes itself down
