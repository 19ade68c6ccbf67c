"""One run of thousands of model calls, over as many continuations as it takes. Not a part of the test suite.

    uv run python tests/marathon.py --calls 2000

Shows that nothing is asked or looked up twice, that the model is sent the whole conversation to the end, and how large
the histories and what is carried over from one to the next become.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from servers import dev_server
from standin import Call, StandIn, text, tools
from starlette.responses import Response
from temporalio.client import Client

import main
from app import command_line, devserver
from options.gateway import GatewayModel
from plugin import DurableAgents
from workflow import AgentWorkflow
from workflow_types import AgentRequest


class Script:
    """A model that looks up a city with every call but the last, and notes when it was asked."""

    def __init__(self, calls: int, standin: StandIn) -> None:
        self.calls = calls
        self.standin = standin
        self.asked: list[float] = []
        self.conversations: list[int] = []

    async def reply(self, call: Call) -> Response:
        self.standin.calls.clear()  # it keeps every request, which here would take gigabytes
        self.asked.append(time.monotonic())
        self.conversations.append(len(call.tool_results))
        n = len(self.asked)
        answer = text("done") if n == self.calls else tools((f"call-{n}", "get_population", {"city": "Tokyo"}))
        response = answer(call)
        assert isinstance(response, Response)
        return response


async def marathon(client: Client, calls: int) -> bool:
    with StandIn().serving() as standin:
        script = Script(calls, standin)
        os.environ.update(standin.environment)
        standin.play(*[script.reply] * calls)
        request = AgentRequest(query="Look up Tokyo, again and again", model="test/model", max_model_calls=calls)
        async with main.make_worker(client):
            since = time.monotonic()
            handle = await client.start_workflow(
                AgentWorkflow.run, request, id="marathon", task_queue=command_line.TASK_QUEUE
            )
            answer = await handle.result()
            seconds = time.monotonic() - since
        events, sizes, carried = [], [], []
        run_id = handle.first_execution_run_id
        while run_id:
            part = client.get_workflow_handle(handle.id, run_id=run_id)
            description = await part.describe()
            sizes.append(description.raw_description.workflow_execution_info.history_size_bytes)
            *_, last = (await part.fetch_history()).events
            events.append(last.event_id)
            continued = last.workflow_execution_continued_as_new_event_attributes
            run_id = continued.new_execution_run_id
            carried += [len(payload.data) for payload in continued.input.payloads]

    turns = [b - a for a, b in zip(script.asked, script.asked[1:], strict=False)]
    tenth = len(turns) // 10
    print(f"answer {answer.text!r} after {len(script.asked):,} model calls in {seconds:.0f} s")
    print(f"lookups: {len(standin.lookups):,}")
    print(f"results in the last conversation: {script.conversations[-1]:,}")
    print(f"runs: {len(events)}; events: {events}; bytes: {sizes}; carried over: {carried}")
    print(
        f"seconds a turn: median of the first tenth {statistics.median(turns[:tenth]):.3f}, "
        f"of the last {statistics.median(turns[-tenth:]):.3f}"
    )
    return (
        answer.text == "done"
        and len(script.asked) == calls
        and len(standin.lookups) == calls - 1
        and script.conversations == list(range(calls))
    )


async def with_server(calls: int) -> bool:
    with dev_server(*devserver.FAST) as (_, address):
        return await marathon(await Client.connect(address, plugins=[DurableAgents(GatewayModel)]), calls)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One run of thousands of model calls.")
    parser.add_argument("--calls", type=int, default=2000)
    passed = asyncio.run(with_server(parser.parse_args().calls))
    sys.stdout.flush()
    os._exit(0 if passed else 1)  # as main.py does: the Temporal runtime may crash an interpreter that ends
