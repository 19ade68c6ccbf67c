"""Shows the `Agent` of the SDK: its file tools as activities, and its question before each tool call as a hook."""

import shutil
import tempfile
from pathlib import Path

import vercel_ai_sdk as ai
from shared import QUEUE, calls, make_worker, results, run, says, scripted
from temporalio import workflow
from temporalio.client import Client
from vercel_ai_sdk.agent import Agent
from vercel_ai_sdk.agent.local import LocalFilesystem
from vercel_ai_sdk.agent.tools import BUILTIN_TOOLS, _filesystem  # private: where the file tools find their files

from bridge.wire import text_of
from durable import TemporalLanguageModel, temporal_tool
from options.hooks import RESOLVE_HOOK, HookResolution, open_hooks, temporal_hooks

temporal_hooks()
for tool in BUILTIN_TOOLS:
    temporal_tool(tool)

FILES = LocalFilesystem(Path(tempfile.mkdtemp(prefix="sdk-agent-")))
# An activity does not see what `Agent.run()` sets in the workflow. It sees what its process has set before the worker
# was started. All workers need the same files, so on several machines this would be a file system that they share.
_filesystem.set(FILES)


@workflow.defn
class ClerkWorkflow:
    @workflow.run
    async def run(self, query: str) -> str:
        clerk = Agent(TemporalLanguageModel("scripted"), FILES, system="You keep files.")
        answer = ""
        async for message in clerk.run(ai.make_messages(user=query)):
            answer = text_of(message) or answer
        return answer


async def script(model: str, messages: list[ai.Message]) -> ai.Message:
    done = results(messages)
    match len(done):
        case 0:
            return calls("write", {"path": "minutes.txt", "content": "All agreed."})
        case 1:
            return calls("read", {"path": "minutes.txt"})
    return says("; ".join(" ".join(result.split()) for result in done))


async def main(client: Client) -> None:
    async with make_worker(client, ClerkWorkflow):
        handle = await client.start_workflow(ClerkWorkflow.run, "Write the minutes", id=QUEUE, task_queue=QUEUE)
        # A person, who allows everything. Any process could do this.
        allowed: set[str] = set()
        async for event in handle.fetch_history_events(wait_new_event=True):
            if not event.HasField("workflow_properties_modified_event_attributes"):
                continue
            for hook in open_hooks(await (await handle.describe()).memo()).values():
                if hook.label not in allowed:
                    allowed.add(hook.label)
                    print(f"? {hook.label}: {hook.metadata}")
                    answer = HookResolution(label=hook.label, resolution={"granted": True})
                    await handle.execute_update(RESOLVE_HOOK, answer)
        print(await handle.result())
    shutil.rmtree(FILES.cwd)


if __name__ == "__main__":
    run(main, scripted(script))
