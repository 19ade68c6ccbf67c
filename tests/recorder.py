"""A handler of the SDK's telemetry that keeps what it is told."""

import threading
from collections import defaultdict
from dataclasses import asdict

import vercel_ai_sdk as ai
from vercel_ai_sdk.core.telemetry import RunFinishEvent, StepFinishEvent, TelemetryEvent

type Told = tuple[str, dict[str, object]]
"""An event: its kind, and all that is in it but times and random ids."""


class Recorder:
    def __init__(self) -> None:
        self.runs: defaultdict[str, list[Told]] = defaultdict(list)
        """By the id of the `ai.run()`."""

    def handle(self, event: TelemetryEvent) -> None:
        self.runs[ai.telemetry.get_run_id()].append(told(event))

    def only_run(self) -> list[Told]:
        [events] = self.runs.values()
        return events


def told(event: TelemetryEvent) -> Told:
    kind = type(event).__name__.removesuffix("Event")
    match event:
        case StepFinishEvent():
            # Without Temporal, the message is also there as it was at each of its words.
            [*_, message] = event.result.messages
            return kind, {"step_index": event.step_index, "message": message.model_dump(mode="json", exclude={"id"})}
        case RunFinishEvent():
            usage = event.usage and event.usage.model_dump(mode="json")
            return kind, {"usage": usage, "error": event.error and type(event.error).__name__}
    fields = asdict(event)
    fields.pop("duration_ms", None)
    return kind, fields


RECORDER = Recorder()
"""For workflows that enable it themselves."""

LINGERS = threading.Event()
"""Set when a `LingeringWorkflow` waits."""

FAULTS: list[str] = []
"""What a `FaultyWorkflow` stumbles over, once each."""
