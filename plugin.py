"""One line to use the bridge: a Temporal plugin that gives clients and workers all that it needs.

    client = await Client.connect(address, plugins=[DurableAgents(MyModel)])
    worker = Worker(client, task_queue="agents", workflows=[MyWorkflow])

It extends what it finds. A codec, a failure converter and external storage stay, the sandbox keeps its other settings,
and Temporal's other plugins may stand before or after it. `Replayer` and `WorkflowEnvironment` take it, too.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, override

import vercel_ai_sdk as ai
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import DataConverter
from temporalio.plugin import SimplePlugin
from temporalio.worker import (
    ExecuteWorkflowInput,
    Interceptor,
    WorkerConfig,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowRunner,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities import ModelActivities, tool_call_activity
from bridge.failures import failure_of
from bridge.slots import tuner

HEARTBEAT_THROTTLE = timedelta(milliseconds=100)
"""How often a worker sends heartbeats on. By default it does so after 80 % of the heartbeat timeout, here four seconds.
The live text would wait as long, and so would the news that a call is cancelled. Where heartbeats cost money, as on
Temporal Cloud, give the `Worker` another `max_heartbeat_throttle_interval`: the text then comes in larger steps."""

STICKY_TIMEOUT = timedelta(seconds=5)
"""How long a run waits for the worker that has it in its cache, and may be dead, before any other may take it."""


MAX_ACTIVITIES = 2000
"""Most activities of a worker at once: more than one process can serve."""


class DurableAgents(SimplePlugin):
    """Brings the payload converter to clients, and both activities and all settings of the bridge to workers.

    Give it to `Client.connect()`: the workers of a client take over its plugins.

    Args:
        make_model: Makes the model to call from the name that the workflow's `TemporalLanguageModel` has. Called for
            every call, since a model may keep the state of its stream. It has to raise when a stream breaks off, or
            half a message is taken for an answer: the SDK's own models do not, `GatewayModel` of options/gateway.py
            does. For an answer that it cannot read it raises a `MalformedStream` of bridge/failures.py. None for a
            process that only starts runs, or that only drives workflows.
        max_activities: How many activities a worker does at once, if its event loop is not late (bridge/slots.py). A
            call that waits takes a connection and about a quarter of a megabyte, with its workflow run.
    """

    def __init__(
        self, make_model: Callable[[str], ai.LanguageModel] | None = None, *, max_activities: int = MAX_ACTIVITIES
    ) -> None:
        self._max_activities = max_activities
        self._interceptor = _GroupsFailTheRun()
        super().__init__(
            "durable-agents",
            data_converter=_with_pydantic,
            interceptors=[self._interceptor],
            activities=[ModelActivities(make_model).llm_stream_activity, tool_call_activity] if make_model else [],
            workflow_runner=with_passthrough,
        )
        _quiet_ends()

    @override
    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        if self._interceptor in (config.get("interceptors") or ()):
            return config  # the same plugin on the client and on the worker
        config = super().configure_worker(config)
        if config.get("max_heartbeat_throttle_interval") == timedelta(seconds=60):  # Temporal's default
            config["max_heartbeat_throttle_interval"] = HEARTBEAT_THROTTLE
        if config.get("sticky_queue_schedule_to_start_timeout") == timedelta(seconds=10):  # Temporal's default
            config["sticky_queue_schedule_to_start_timeout"] = STICKY_TIMEOUT
        if config.get("max_cached_workflows") == 1000:  # Temporal's default
            config["max_cached_workflows"] = max(1000, self._max_activities)
        if config.get("tuner") is None and config.get("max_concurrent_activities") is None:
            config["tuner"] = tuner(
                self._max_activities,
                config.pop("max_concurrent_workflow_tasks", None),
                config.pop("max_concurrent_local_activities", None),
                config.pop("max_concurrent_nexus_tasks", None),
            )
        return config


def _with_pydantic(converter: DataConverter | None) -> DataConverter:
    converter = converter or DataConverter.default
    if issubclass(converter.payload_converter_class, PydanticPayloadConverter):
        return converter
    return dataclasses.replace(converter, payload_converter_class=PydanticPayloadConverter)


def with_passthrough(runner: WorkflowRunner | None) -> WorkflowRunner:
    """The workflow runner, or Temporal's default one, with a sandbox that workflows with the SDK can run in."""
    if runner is None:
        runner = SandboxedWorkflowRunner()
    if isinstance(runner, SandboxedWorkflowRunner):
        # The SDK imports some of its modules only when they are used, which for the sandbox would be inside a workflow.
        restrictions = runner.restrictions.with_passthrough_modules("vercel_ai_sdk")
        return dataclasses.replace(runner, restrictions=restrictions)
    return runner


class _GroupsFailTheRun(Interceptor):
    """Ends a run whose loop fails, also by a bug in the loop: see `failure_of()`. Errors outside of `ai.run()` are left
    to Temporal, which retries the workflow task until the code is mended."""

    @override
    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor] | None:
        return _FailureOfGroup


class _FailureOfGroup(WorkflowInboundInterceptor):
    @override
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        try:
            return await super().execute_workflow(input)
        except BaseExceptionGroup as group:
            failure = failure_of(group)
            raise failure from failure.__cause__  # the cause makes it a cancellation; the group is left out


@functools.cache
def _quiet_ends() -> None:
    """Keep Python from complaining about runs that end with their worker.

    A worker that shuts down drops the runs in its cache, and the generator of `ai.run()` is collected where it waits.
    Python then writes to standard error that the generator ignores its end, since its clean-up waits, too. There is
    nothing to be cleaned up: another worker replays the run.
    """
    report = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        code = getattr(unraisable.object, "ag_code", None)
        of_run = code is not None and code.co_qualname == "run.<locals>._generate"  # private: that generator
        if not (of_run and str(unraisable.exc_value) == "async generator ignored GeneratorExit"):
            report(unraisable)

    sys.unraisablehook = hook
