"""A worker in a process of its own that prints what telemetry tells, as JSON, a line each.

The arguments are the address of a server, a task queue, and `events` or `spans`.
"""

import asyncio
import json
import os
import sys
from typing import override

from app.command_line import load_when_used

load_when_used()

import vercel_ai_sdk as ai
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from recorder import told
from temporalio.client import Client
from temporalio.contrib.opentelemetry import OpenTelemetryPlugin, create_tracer_provider
from temporalio.worker import Worker
from vercel_ai_sdk.core.telemetry import TelemetryEvent

from options.gateway import GatewayModel
from plugin import DurableAgents
from workflow import AgentWorkflow


class PrintedEvents:
    def handle(self, event: TelemetryEvent) -> None:
        print(json.dumps(told(event)), flush=True)


class PrintedSpans(SpanExporter):
    @override
    def export(self, spans: object) -> SpanExportResult:
        assert isinstance(spans, tuple | list)
        for span in spans:
            assert isinstance(span, ReadableSpan)
            print(span.to_json(indent=None), flush=True)
        return SpanExportResult.SUCCESS


async def main(address: str, queue: str, wanted: str) -> None:
    if wanted == "spans":
        ai.telemetry.enable()
        provider = create_tracer_provider()
        provider.add_span_processor(SimpleSpanProcessor(PrintedSpans()))
        trace.set_tracer_provider(provider)
        plugins = [DurableAgents(GatewayModel), OpenTelemetryPlugin()]
    else:
        ai.telemetry.enable(PrintedEvents())
        plugins = [DurableAgents(GatewayModel)]
    client = await Client.connect(address, plugins=plugins)
    async with Worker(client, task_queue=queue, workflows=[AgentWorkflow]):
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    sys.stdout.flush()
    os._exit(0)
