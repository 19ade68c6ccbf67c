"""The command line: find or start a Temporal server, run a worker, submit an `AgentWorkflow`, show its answer.

The answer is the only thing on standard output.
"""

import os
import signal
import sys

from app.command_line import TASK_QUEUE, Options, load_providers_when_used, parse

if __name__ == "__main__":
    # Wrong usage is answered at once, not after the time in which the libraries below are loaded.
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to put in order yet, so no traceback either
    COMMAND_LINE = parse(sys.argv[1:])
    load_providers_when_used()

import asyncio
import shlex
import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, nullcontext, suppress

from temporalio.client import Client, WorkflowFailureError
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig

from app import demo, open_meteo
from app.interrupts import Interrupts
from app.output import COMMAND, UserError, one_line, print_answer, say, say_error, set_up_logging, title
from app.runs import Handle, answer_question, find, has_worker, join, result_of, why_failed
from app.server import Server, temporal_server
from app.terminal import follow
from bridge.wire import PAYLOAD_LIMIT
from options import gateway
from options.http import proxy_for
from plugin import DurableAgents
from workflow import AgentRequest, AgentWorkflow

DEFAULT_QUERY = "How is the weather in New York and in Los Angeles, and how many people live in each?"
CUT_SHORT = {"length": "the model's length limit", "content-filter": "a content filter"}


def main(options: Options) -> int:
    """Do what the command line says, with the services of the demo if it is offline. Returns the exit status."""
    set_up_logging(options.debug)
    try:
        with ExitStack() as stack:
            if options.makes_calls:
                if options.offline:
                    say(demo.NOTICE)
                    os.environ.update(demo.environment(stack.enter_context(demo.serve())))
                check_environment()
            return asyncio.run(run(options))
    except Exception as error:
        say_error(error, options.debug)
        return 1


def check_environment() -> None:
    """Find what would fail every model or tool call before a run is started. UserError: it cannot be used."""
    try:
        gateway.check_environment()
        for url in (open_meteo.geocoding_url(), open_meteo.forecast_url()):
            proxy_for(url)
    except ValueError as error:
        raise UserError(one_line(error)) from error


async def run(options: Options) -> int:
    """Do what the command line says, and return the exit status. UserError: it cannot be done."""
    interrupts = Interrupts()
    worker_failures: list[BaseException] = []

    async def worker_failed(failure: BaseException) -> None:
        worker_failures.append(failure)

    try:
        # An answering process exits immediately, so it must not run activities.
        async with temporal_server(DurableAgents(gateway.GatewayModel if options.makes_calls else None)) as server:
            queue = options.task_queue
            if options.answers:
                queue = (await find(server.client, options.id or ""))[1].task_queue
            worker = make_worker(server.client, queue, worker_failed) if not options.no_worker else nullcontext()
            async with worker:
                try:
                    if options.worker:
                        say(f"Worker on {server.client.service_client.config.target_host} is ready. Ctrl-C stops it.")
                        await asyncio.Event().wait()
                    elif options.answers:
                        await answer_question(server.client, options)
                    else:
                        await submit(server, options)
                finally:
                    interrupts.end()
        return 0
    except (Exception, asyncio.CancelledError) as error:
        if worker_failures:
            raise UserError(f"the worker stopped: {one_line(worker_failures[0])}") from worker_failures[0]
        if isinstance(error, asyncio.CancelledError) and interrupts.interrupted:
            return 0 if options.worker else 130
        if isinstance(error, RPCError):
            raise UserError(f"the Temporal server refused: {one_line(error)}") from error
        raise


def make_worker(
    client: Client,
    task_queue: str = TASK_QUEUE,
    on_fatal_error: Callable[[BaseException], Awaitable[None]] | None = None,
) -> Worker:
    """A worker for the agent's workflow. The client's plugin brings the activities.

    Args:
        client: Connected with `DurableAgents`.
        task_queue: Where its work comes from; by default that of real models.
        on_fatal_error: Told why the worker stops.
    """
    build_id = os.environ.get("TEMPORAL_WORKER_BUILD_ID")
    # Without a build id the worker makes one of the code of every module there is, which takes a second.
    version = WorkerDeploymentVersion("durable-agent", build_id or "1")
    # With a build id of your own, a run stays with the build that it began with.
    behavior = VersioningBehavior.PINNED if build_id else VersioningBehavior.UNSPECIFIED
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[AgentWorkflow],
        deployment_config=WorkerDeploymentConfig(version, bool(build_id), behavior),
        on_fatal_error=on_fatal_error,
    )


async def submit(server: Server, options: Options) -> None:
    """Start or join the run, follow it, and print its answer. UserError: there is no such run, or it has no answer."""
    handle, state = await start_or_join(server.client, options)
    say(f"Run {handle.id} (process {os.getpid()}){state}")
    if page := server.page(handle.id):
        say(f"    {page}")
    if options.no_worker and not await has_worker(server.client, options.task_queue):
        say(f"No worker serves the task queue {options.task_queue}; waiting for one.")
    try:
        summary = await follow(server.client, handle, options.debug)
        answer = await result_of(handle)
    except WorkflowFailureError as error:
        raise UserError(why_failed(error)) from error
    except asyncio.CancelledError:
        say(f"Interrupted. The run itself goes on; follow it with: {COMMAND} --id {shlex.quote(handle.id)}")
        raise
    if cut := CUT_SHORT.get(answer.finish_reason or ""):
        say(f"The answer was cut short by {cut}.")
    print_answer(answer.text)
    say(summary)
    if server.is_ours:
        say(f"To look back: {COMMAND} --worker, and open the page above. Ctrl-C stops it.")


async def start_or_join(client: Client, options: Options) -> tuple[Handle, str]:
    """Start the run, or join the one that has its name; then the second value tells the state in which it was found.

    Raises:
        UserError: It cannot be joined, or the query is too large.
    """
    run_id = options.id or f"agent-{uuid.uuid4().hex[:12]}"
    request = AgentRequest(query=options.query or DEFAULT_QUERY, model=options.model, approve=options.approve)
    size, limit = len(request.model_dump_json().encode()), PAYLOAD_LIMIT // 2
    if size > limit:  # the rest of the payload is for the state that a run carries over when it continues as new
        raise UserError(f"the query has {size:,} bytes, over the limit of {limit:,}: shorten it")
    if options.id is None or options.query is not None:
        with suppress(WorkflowAlreadyStartedError):
            started = await client.start_workflow(
                AgentWorkflow.run,
                request,
                id=run_id,
                task_queue=options.task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                request_eager_start=not options.no_worker,  # saves a round trip where the worker is in this process
                static_summary=title(request.query),
            )
            return started, ""
    handle, running = await join(client, run_id, options.task_queue)
    state = " is under way" if running else " is over"
    return handle, state + ("; it keeps the query that it was started with" if options.query else "")


if __name__ == "__main__":
    # Not sys.exit(): when the interpreter takes itself down, threads of the Temporal runtime may still be running in
    # it, and every few exits one of them crashes the process. All output is flushed where it is written.
    os._exit(main(COMMAND_LINE))
