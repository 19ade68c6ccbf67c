"""Runs the worker of one variant in a process of its own, so that CPU time and memory are its own.

    python worker.py MODULE ADDRESS

Says so in a line of JSON when it serves, and answers each line of its standard input with what it has used so far.
Ends with its standard input, so that it does not outlive the benchmark.
"""

import asyncio
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
from datetime import timedelta
from typing import TypedDict

from temporalio.common import WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

PACKAGES = ["temporalio", "vercel-ai-sdk", "temporalio-openai-agents", "openai-agents", "pydantic-ai-slim", "pydantic"]


class WorkerOptions(TypedDict):
    """The same for all variants. What is not named here is Temporal's default, the cache of workflows included."""

    task_queue: str
    max_heartbeat_throttle_interval: timedelta
    deployment_config: WorkerDeploymentConfig


async def serve(module: str, address: str) -> None:
    variant = importlib.import_module(module)
    # With a build id of its own, the worker does not make one of the code of all modules, which takes a second.
    version = WorkerDeploymentVersion(deployment_name=module, build_id="1")
    options = WorkerOptions(
        task_queue=module,
        max_heartbeat_throttle_interval=timedelta(milliseconds=100),  # as in main.py
        deployment_config=WorkerDeploymentConfig(version=version, use_worker_versioning=False),
    )
    async with variant.make_worker(await variant.connect(address), options):
        say({"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}})
        while await asyncio.to_thread(sys.stdin.readline):
            usage = resource.getrusage(resource.RUSAGE_SELF)
            unit = 1 if sys.platform == "darwin" else 1024
            say({"cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss * unit})
        # Not sys.exit(), see the end of main.py. Nor is there anything to be shut down in order.
        os._exit(0)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def say(line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
