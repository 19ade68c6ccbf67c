"""The command line: find or start a Temporal server, run a worker, submit an `AgentWorkflow`, show its answer.

The answer is the only thing on standard output.
"""

import os
import signal
import sys

from app.command_line import TASK_QUEUE, Options, load_when_used, parse

if __name__ == "__main__":
    # Wrong usage is answered at once, not after the seconds in which the libraries below are loaded.
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to put in order yet, so no traceback either
    COMMAND_LINE = parse(sys.argv[1:])
    load_when_used()

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker

from app import demo
from app.chat import chat
from app.endings import Ending
from app.environment import build_of_worker, check_environment
from app.output import say, say_error, set_up_logging, title
from app.runs import Handle, answer_question, join, list_conversations, send_message, signal_run, task_queue_of
from app.server import temporal_server
from app.terminal import show_run
from options.conversation import ConversationState, UserMessage
from options.gateway import GatewayModel
from plugin import MAX_ACTIVITIES, DurableAgents
from workflow import AgentWorkflow
from workflow_types import AgentRequest

DEFAULT_QUERY = "How is the weather in New York and in Los Angeles, and how many people live in each?"


def main(options: Options) -> int:
    """Do what the command line says, and return the exit status. Without a key, the demo serves model and data."""
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


async def run(options: Options) -> int:
    """Do what the command line says, with a Temporal server, and return the exit status."""
    # With `--yes` or `--no` the process delivers an approval, which a worker has to accept. The process exits right
    # after, so its worker must not begin any call: `None` leaves the activities out.
    plugin = DurableAgents(
        GatewayModel if options.makes_calls else None, max_activities=options.max_activities or MAX_ACTIVITIES
    )
    async with Ending(options) as ending, temporal_server(plugin) as server:
        queue = await task_queue_of(server.client, options)
        worker = make_worker(server.client, queue, ending.worker_failed) if options.has_worker else nullcontext()
        async with worker, ending.work():  # the first Ctrl-C stops the work, then the worker
            if options.worker:
                say(f"Worker on {server.client.service_client.config.target_host} is ready. Ctrl-C stops it.")
                await asyncio.Event().wait()
            elif options.list:
                await list_conversations(server.client)
            elif options.stop or options.end:
                await signal_run(server.client, options)
            elif options.answers:
                await answer_question(server.client, options)
            elif options.chat:
                await chat(server, partial(ask, server.client, options=options), options)
            elif options.id is not None and options.query is None:
                handle, state = await join(server.client, options.id, options.task_queue)
                await show_run(server, handle, state, None, options)
            else:
                message = UserMessage(id=uuid.uuid4().hex, text=options.query or DEFAULT_QUERY)
                handle, state = await ask(server.client, message, options)
                await show_run(server, handle, state, message.id, options)
    return ending.status


def make_worker(
    client: Client,
    task_queue: str = TASK_QUEUE,
    on_fatal_error: Callable[[BaseException], Awaitable[None]] | None = None,
) -> Worker:
    """A worker for the agent's workflow. The client's plugin `DurableAgents` brings the activities."""
    return Worker(
        client,
        task_queue=task_queue,
        workflows=[AgentWorkflow],
        deployment_config=build_of_worker(),
        on_fatal_error=on_fatal_error,
    )


async def ask(client: Client, message: UserMessage, options: Options) -> tuple[Handle, str]:
    """Send a message to the run that has its name, or to a new one. Returns its handle, and its state in words.

    Raises:
        UserError: That is not possible, or the message is too large.
    """
    workflow_id = options.id or f"agent-{uuid.uuid4().hex[:12]}"

    async def start(conversation: ConversationState | None, memo: dict[str, Any]) -> Handle:
        request = AgentRequest(
            query=message.text,
            query_id=message.id,
            model=options.model,
            approve=options.approve,
            stay_open=options.chat,
            idle_limit=options.idle_limit,
            conversation=conversation,
        )
        return await client.start_workflow(
            AgentWorkflow.run,
            request,
            id=workflow_id,
            task_queue=options.task_queue,
            request_eager_start=not options.no_worker,  # saves a round trip where the worker is in this process
            static_summary=title(message.text),
            memo=memo,
        )

    return await send_message(client, workflow_id, message, start, options.task_queue)


if __name__ == "__main__":
    # Not sys.exit(): when the interpreter takes itself down, threads of the Temporal runtime may still be running in
    # it, and every few exits one of them crashes the process. All output is flushed where it is written.
    os._exit(main(COMMAND_LINE))
