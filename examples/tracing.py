"""Shows the trace of a durable run: the client's span, the agent's run, its model calls with tokens, its tool calls.

    uv run python examples/tracing.py "What is the weather in Tokyo?"

Model and data are the demo; Temporal is found as main.py finds it. In the place of the exporter in memory put one that
sends spans to your backend, behind a `BatchSpanProcessor`: spans end in the threads of workflows, which must not wait.
"""

import asyncio
import os
import sys
import uuid
from pathlib import Path

import vercel_ai_sdk as ai
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from temporalio.contrib.opentelemetry import OpenTelemetryPlugin, create_tracer_provider
from temporalio.worker import Worker

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import demo
from app.server import temporal_server
from options.gateway import GatewayModel
from plugin import DurableAgents
from workflow import AgentWorkflow
from workflow_types import AgentRequest

DETAILS = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.tool.name", "gen_ai.tool.call.arguments")


async def main(query: str) -> None:
    memory = InMemorySpanExporter()
    # Temporal's provider makes the ids of spans the same in every replay. It has to be the global one.
    provider = create_tracer_provider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)
    ai.telemetry.enable()  # the SDK's `OtelHandler`, as without Temporal

    async with temporal_server(DurableAgents(GatewayModel), OpenTelemetryPlugin()) as server:
        name = f"tracing-{uuid.uuid4().hex[:12]}"
        async with Worker(server.client, task_queue=name, workflows=[AgentWorkflow]):
            with trace.get_tracer("example").start_as_current_span("question"):
                request = AgentRequest(query=query, model="demo")
                answer = await server.client.execute_workflow(AgentWorkflow.run, request, id=name, task_queue=name)
    print(answer.text)
    show(memory.get_finished_spans())


def show(spans: tuple[ReadableSpan, ...], parent: int | None = None, indent: str = "") -> None:
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        if span.context is not None and (span.parent.span_id if span.parent else None) == parent:
            found = span.attributes or {}
            print(
                indent + span.name, *(f"{name.rsplit('.', 1)[1]}={found[name]!r}" for name in DETAILS if name in found)
            )
            show(spans, span.context.span_id, indent + "  ")


if __name__ == "__main__":
    with demo.serve() as url:
        os.environ.update(demo.environment(url))
        asyncio.run(main(" ".join(sys.argv[1:]) or "How is the weather in New York and in Los Angeles?"))
    sys.stdout.flush()
    os._exit(0)  # see the end of main.py
