"""Runs the same work on this sample and on others, side by side, and writes what it took to results.*.

    uv run benchmarks/run.py              # about ten minutes
    uv run benchmarks/run.py --quick      # half a minute, to see that it works

Starts a dev server of its own, a tuned one as main.py starts it and then a stock one, and one worker process for each
variant, all on loopback. In each round every variant does the same work in turn, so that whatever drifts on the machine
hits all alike. The workers that have nothing to do wait for the server and take no CPU time worth speaking of; starting
them anew for each round would cost more, and would measure their start.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import report
import work
from temporalio.client import Client, WorkflowHandle

FOLDER = Path(__file__).resolve().parent
sys.path += [str(FOLDER.parent), str(FOLDER.parent / "tests")]

from servers import dev_server  # noqa: E402

from app import devserver  # noqa: E402

STOP_SECONDS = 5
WORK_SECONDS = 300
"""How long a workflow may take before the benchmark gives up."""


@dataclass(frozen=True)
class Variant:
    """A way to do the work: the module that has its worker, and what to start."""

    module: str
    workflow: str

    def arguments(self, turns: int) -> list[Any]:
        query = work.query(turns)
        match self.module:
            case "variant_sample":
                return [{"query": query, "model": "instant/model", "max_model_calls": turns + 1}]
            case "variant_floor":
                return [turns]
            case "peer_openai_agents":
                return [query, turns + 1]
            case _:
                return [query]


VARIANTS = [
    Variant("variant_sample", "AgentWorkflow"),
    Variant("variant_floor", "FloorWorkflow"),
    Variant("variant_obvious", "ObviousWorkflow"),
    Variant("peer_openai_agents", "OpenAIAgentsWorkflow"),
    Variant("peer_pydantic_ai", "PydanticAIAgentWorkflow"),
]


class Options(argparse.Namespace):
    turns: list[int]
    rounds: int
    stock_rounds: int
    parallel: int
    quick: bool
    no_peers: bool
    output: Path | None


def parse() -> Options:
    parser = argparse.ArgumentParser(description="Compare this sample with others that do the same work.")
    parser.add_argument("--turns", type=int, nargs="+", default=[3, 10, 30, 60], help="(default: 3 10 30 60)")
    parser.add_argument("--rounds", type=int, default=5, help="on the tuned server (default: %(default)s)")
    parser.add_argument(
        "--stock-rounds", type=int, default=2, help="on the stock server, 0 for none (default: %(default)s)"
    )
    parser.add_argument("--parallel", type=int, default=50, help="workflows at once (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="1 and 3 turns, each once, 5 workflows at once")
    parser.add_argument("--no-peers", action="store_true", help="only what is in this repository: installs nothing")
    parser.add_argument("--output", type=Path, help="folder for results.* (default: this one; if quick, a new one)")
    options = parser.parse_args(namespace=Options())
    options.turns.sort()
    if options.quick:
        options.turns, options.rounds, options.parallel = [1, 3], 1, 5
        options.stock_rounds = min(options.stock_rounds, 1)
    return options


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ── The workers ──────────────────────────────────────────────────────────────────────────────────────────


class WorkerProcess:
    """The process of one variant's worker."""

    def __init__(self, variant: Variant, address: str, folder: Path) -> None:
        self.variant = variant
        self._log = folder / f"{variant.module}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python_of(variant.module), str(FOLDER / "worker.py"), variant.module, address],
                env={**os.environ, "PYTHONPATH": str(FOLDER.parent)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def read(self) -> dict[str, Any]:
        while line := self._out.readline():
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
            say(line.rstrip())  # Temporal writes its warnings there, too
        raise RuntimeError(f"the worker {self.variant.module} ended:\n{self.last_words()}")

    def used(self) -> dict[str, float]:
        """CPU seconds and peak bytes of memory so far."""
        print(file=self._in, flush=True)
        return self.read()

    def last_words(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def python_of(module: str) -> str:
    """The interpreter that has what the variant needs: this one, or that of the environment named in the script."""
    if not module.startswith("peer_"):
        return sys.executable
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        sys.exit("there is no `uv` command, which installs the others")
    script = str(FOLDER / f"{module}.py")
    subprocess.run([uv, "sync", "--quiet", "--python", sys.executable, "--script", script], check=True)
    find = [uv, "python", "find", "--script", script]
    return subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def workers(address: str, folder: Path, options: Options) -> Iterator[list[WorkerProcess]]:
    with ExitStack() as stack:
        started = []
        for variant in VARIANTS:
            if options.no_peers and variant.module in report.PEERS:
                continue
            started.append(worker := WorkerProcess(variant, address, folder))
            stack.callback(worker.stop)
        yield started


# ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────


async def answer(client: Client, worker: WorkerProcess, turns: int) -> WorkflowHandle[Any, Any]:
    """Run one workflow to its answer."""
    variant = worker.variant
    id = f"{variant.module}-{turns}-{uuid.uuid4().hex[:8]}"
    handle = await client.start_workflow(
        variant.workflow, args=variant.arguments(turns), id=id, task_queue=variant.module
    )
    try:
        async with asyncio.timeout(WORK_SECONDS):
            result = await handle.result()
    except Exception as error:
        raise RuntimeError(f"{id} came to no answer:\n{worker.last_words()}") from error
    if work.ANSWER not in str(result):
        raise RuntimeError(f"{id} answered {result!r}")
    return handle


async def describe(handle: WorkflowHandle[Any, Any]) -> report.Workflow:
    """What a workflow took, as the server says, and not how long this process waited for it."""
    info = (await handle.describe()).raw_description.workflow_execution_info
    return report.Workflow(
        seconds=(info.close_time.ToNanoseconds() - info.start_time.ToNanoseconds()) / 1e9,
        history_bytes=info.history_size_bytes,
        history_events=info.history_length,
    )


async def warm_up(client: Client, worker: WorkerProcess, turns: int) -> None:
    """Also sees that the variant makes just the calls that it should, each as an activity, and none twice."""
    history = await (await answer(client, worker, turns)).fetch_history()
    done = sum(event.HasField("activity_task_completed_event_attributes") for event in history.events)
    if done != work.activities(turns):
        module = worker.variant.module
        raise RuntimeError(f"{module} had {done} activities where the work is {work.activities(turns)}")


async def measure_in_turn(client: Client, worker: WorkerProcess, server: str, turns: int, count: int) -> report.Sample:
    before = worker.used()["cpu"]
    handles = [await answer(client, worker, turns) for _ in range(count)]
    cpu = (worker.used()["cpu"] - before) / count
    workflows = [await describe(handle) for handle in handles]
    return report.Sample(server, worker.variant.module, turns, workflows=workflows, cpu_seconds=cpu)


async def measure_at_once(client: Client, worker: WorkerProcess, server: str, turns: int, count: int) -> report.Batch:
    since = time.perf_counter()
    await asyncio.gather(*(answer(client, worker, turns) for _ in range(count)))
    return report.Batch(server, worker.variant.module, turns, count, count / (time.perf_counter() - since))


async def measure(server: str, rounds: int, options: Options, results: report.Results) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as name, ExitStack() as running:
        tuned = ["--db-filename", f"{name}/temporal.db", *devserver.FAST, *devserver.KILLABLE, "--log-level", "warn"]
        settings = tuned if server == "tuned" else []
        _, address = running.enter_context(dev_server(*settings))
        all_workers = running.enter_context(workers(address, Path(name), options))
        client = await Client.connect(address)
        for worker in all_workers:
            results.versions |= {key: version for key, version in worker.read().items() if version}
        say(f"{server} server: warming up")
        for worker in all_workers:
            for turns in options.turns[:2]:
                await warm_up(client, worker, turns)
        for number in range(1, rounds + 1):
            for turns in options.turns:
                # So that short ones have figures that can be relied on.
                count = 1 if options.quick else max(1, 30 // turns)
                say(f"{server} server, round {number} of {rounds}: {turns} turns")
                for worker in all_workers:
                    results.samples.append(await measure_in_turn(client, worker, server, turns, count))
            say(f"{server} server, round {number} of {rounds}: {options.parallel} workflows at once")
            for worker in all_workers:
                batch = await measure_at_once(client, worker, server, options.turns[0], options.parallel)
                results.batches.append(batch)
        for worker in all_workers:
            results.memory.append(report.Memory(server, worker.variant.module, int(worker.used()["memory"])))


async def run(options: Options) -> report.Results:
    # SIGTERM, as from `timeout`, has to stop the server and the workers too.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    results = report.Results(machine=machine(), versions=versions(), turns=options.turns)
    since = time.monotonic()
    await measure("tuned", options.rounds, options, results)
    if options.stock_rounds:
        await measure("stock", options.stock_rounds, options, results)
    results.minutes = (time.monotonic() - since) / 60
    return results


def machine() -> str:
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}, {date.today()}"


def versions() -> dict[str, str]:
    binary = devserver.find_temporal() or "temporal"
    version = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    return {"temporal": version.removeprefix("temporal version ")}


if __name__ == "__main__":
    options = parse()
    try:
        results = asyncio.run(run(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("Interrupted.")
        os._exit(130)
    folder = options.output or (Path(tempfile.mkdtemp(prefix="benchmark-")) if options.quick else FOLDER)
    report.write(results, folder)
    say(f"Wrote {folder / 'results.*'}")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # not sys.exit(), see the end of main.py
