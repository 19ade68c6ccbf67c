"""Runs many agents at once on this sample and on others, and writes what it took to load.*.

    uv run benchmarks/load.py              # about half an hour
    uv run benchmarks/load.py --quick      # half a minute, to see that it works

Each measurement has a dev server, a gateway and a worker of its own, all on loopback and started before the clock is,
and one agent has run before. The gateway is slow as models are, so most of the time everything waits.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import load_report
import load_work
import run as benchmark
from load_gateway import Options as Pace
from load_report import FLOOR, GIVE_UP_SECONDS, SAMPLE, SLOTS, Run
from run import FOLDER, Variant, WorkerProcess, say
from servers import dev_server
from temporalio.client import Client

from app import devserver

LOOK_SECONDS = 0.25
"""How often to ask the server how many agents are done. The times are the server's."""
STOPPED_SECONDS = 4
SLOPE_AGENTS = 100


@dataclass(frozen=True)
class Load(Variant):
    """A way to do the work, and how many activities its worker does at once: Temporal's default if None."""

    name: str
    slots: int | None = None

    def input_of(self, agent: int) -> list[Any]:
        query = load_work.query(agent)
        return [{"query": query, "model": load_work.MODEL}] if self.module == "load_sample" else [query]


VARIANTS = [
    Load("load_sample", "AgentWorkflow", SAMPLE),
    Load("load_floor", "LoadFloorWorkflow", FLOOR, SLOTS),
    Load("load_obvious", "ObviousWorkflow", "obvious"),
    Load("load_obvious", "ObviousWorkflow", "obvious-slots", SLOTS),
    Load("peer_load_openai_agents", "OpenAIAgentsLoadWorkflow", "openai-agents"),
    Load("peer_load_openai_agents", "OpenAIAgentsLoadWorkflow", "openai-agents-slots", SLOTS),
    Load("peer_load_pydantic_ai", "PydanticAILoadWorkflow", "pydantic-ai"),
    Load("peer_load_pydantic_ai", "PydanticAILoadWorkflow", "pydantic-ai-slots", SLOTS),
]


class Options(argparse.Namespace):
    agents: list[int]
    variants: list[str]
    quick: bool
    no_peers: bool
    no_slope: bool
    burn: bool
    stop: bool
    first: float
    tokens: int
    rate: float
    limit: int
    output: Path | None


def parse() -> Options:
    names = [variant.name for variant in VARIANTS]
    parser = argparse.ArgumentParser(description="Run many agents at once, on this sample and on others.")
    parser.add_argument("--agents", type=int, nargs="+", default=[100, 300, 1000], help="(default: 100 300 1000)")
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--no-peers", action="store_true", help="only what is in this repository: installs nothing")
    parser.add_argument("--no-slope", action="store_true", help="leave out the runs that tell the CPU time of a token")
    parser.add_argument(
        "--quick", action="store_true", help="20 agents, short answers, no peers, whatever else is said"
    )
    parser.add_argument("--burn", action="store_true", help="keep all cores busy with something else")
    parser.add_argument(
        "--stop", action="store_true", help=f"stop the worker for {STOPPED_SECONDS} s in the first call"
    )
    parser.add_argument("--first", type=float, default=10, help="seconds to the first token (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=60, help="of an answer (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=10, help="tokens a second (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="model calls a second, 0 for any (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for load.* (default: this one; if quick, a new one)")
    options = parser.parse_args(namespace=Options())
    options.agents.sort()
    if options.quick:
        options.agents, options.no_slope = [20], True
        options.first, options.tokens, options.rate = 1, 20, 20
        options.variants = [name for name in options.variants if name in ("sample", "floor", "obvious")]
    return options


# ── Processes ────────────────────────────────────────────────────────────────────────────────────────────


class LoadWorker(WorkerProcess):
    @property
    def pid(self) -> int:
        return self._process.pid


@contextmanager
def gateway(pace: Pace) -> Iterator[tuple[int, str]]:
    """Have a gateway while the body runs. Yields its process id and its URL."""
    options = [text for name, value in asdict(pace).items() for text in (f"--{name}", str(value))]
    with start(str(FOLDER / "load_gateway.py"), *options) as process:
        try:
            assert process.stdout is not None
            yield process.pid, json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep all cores busy while the body runs, and this process lives."""
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    processes = [start("-c", code) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a process of Python. Ctrl-C is not for it."""
    return subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def cpu_seconds(pid: int) -> float | None:
    """What a process has used, with all its threads. None where there is no /proc."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return None


def memory_now(worker: LoadWorker) -> float:
    """Bytes in memory; where there is no /proc, the most that it has been so far."""
    with suppress(OSError):
        return int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return worker.used()["memory"]


# ── Measuring ────────────────────────────────────────────────────────────────────────────────────────────


class Measurement:
    """One worker, and what its agents do."""

    def __init__(self, client: Client, worker: LoadWorker, variant: Load, gateway: httpx.AsyncClient) -> None:
        self.client, self.worker, self.variant, self.gateway = client, worker, variant, gateway

    async def warm_up(self, pace: Pace) -> None:
        """One agent, and no waiting: whatever a worker loads when it is first needed is loaded now."""
        await self.gateway.post("/reset", json=asdict(replace(pace, first=0, rate=1000)))
        await self.start(0, "warm-up")
        handle = self.client.get_workflow_handle("warm-up-0")
        try:
            async with asyncio.timeout(60):
                result = str(await handle.result())
        except Exception as error:
            raise RuntimeError(f"{self.variant.name} came to no answer:\n{self.worker.last_words()}") from error
        if load_work.TOKEN * pace.tokens not in result:
            raise RuntimeError(f"{self.variant.name} answered {result!r}")
        await self.gateway.post("/reset", json=asdict(pace))

    async def start(self, agent: int, group: str) -> None:
        await self.client.start_workflow(
            self.variant.workflow,
            args=self.variant.input_of(agent),
            id=f"{group}-{agent}",
            task_queue=self.variant.module,
        )

    async def run(self, agents: int, pace: Pace, stop: bool, pids: dict[str, int]) -> Run:
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        idle, cpu, client_cpu = memory_now(self.worker), self.worker.used()["cpu"], time.process_time()
        ideal, since = pace.first * 2 + pace.tokens / pace.rate, time.monotonic()
        async with asyncio.TaskGroup() as group:
            if stop:
                group.create_task(self.stop_for_a_while(pace))
            await asyncio.gather(*(self.start(agent, "agent") for agent in range(1, agents + 1)))
            started = time.monotonic() - since
            answers = await self.wait(since, ideal)
        used = await asyncio.to_thread(self.worker.used)
        client_cpu = time.process_time() - client_cpu
        after = {name: cpu_seconds(pid) for name, pid in pids.items()}
        stats = (await self.gateway.get("/stats")).json()
        seconds, failures = await self.times()
        if answers == agents:
            await self.check(agents, pace)
        counts = [count for agent in stats["calls"].values() for count in agent]

        def spent(name: str) -> float | None:
            start, end = before[name], after[name]
            return None if start is None or end is None else end - start

        return Run(
            variant=self.variant.name,
            agents=agents,
            tokens=pace.tokens,
            ideal=ideal,
            seconds=seconds if answers == agents else None,
            answers=answers,
            failures=failures,
            start_seconds=started,
            peak=stats["peak"],
            model_calls=sum(counts),
            repeated=sum(max(0, count - 1) for count in counts),
            refused=stats["refused"],
            tool_calls=stats["tools"],
            connections=stats["connections"],
            worker_cpu=used["cpu"] - cpu,
            server_cpu=spent("server"),
            gateway_cpu=spent("gateway"),
            client_cpu=client_cpu,
            memory=int(used["memory"] - idle),
            idle_memory=int(idle),
        )

    async def count(self, status: str) -> int:
        query = f"WorkflowId STARTS_WITH 'agent-' AND ExecutionStatus = '{status}'"
        return (await self.client.count_workflows(query)).count

    async def wait(self, since: float, ideal: float) -> int:
        """Until all agents are done, or it takes too long. Returns how many answered."""
        await asyncio.sleep(since + ideal - time.monotonic())
        # Once all are started, this costs less than to wait for each of many.
        while time.monotonic() - since < GIVE_UP_SECONDS:
            if not await self.count("Running"):
                break
            await asyncio.sleep(LOOK_SECONDS)
        return await self.count("Completed")

    async def times(self) -> tuple[float, int]:
        """Seconds from the first start to the last end, as the server says, and how many failed."""
        starts, ends, failures = [], [], 0
        async for one in self.client.list_workflows("WorkflowId STARTS_WITH 'agent-'"):
            starts.append(one.start_time)
            if one.close_time is not None:
                ends.append(one.close_time)
                failures += one.status is not None and one.status.name != "COMPLETED"
        return ((max(ends) - min(starts)).total_seconds() if ends else 0), failures

    async def check(self, agents: int, pace: Pace) -> None:
        """Whether all answers are whole."""
        handles = [self.client.get_workflow_handle(f"agent-{agent}") for agent in range(1, agents + 1)]
        for result in await asyncio.gather(*(handle.result() for handle in handles)):
            if load_work.TOKEN * pace.tokens not in str(result):
                raise RuntimeError(f"an agent of {self.variant.name} answered {result!r}")

    async def stop_for_a_while(self, pace: Pace) -> None:
        await asyncio.sleep(pace.first / 2)
        os.kill(self.worker.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED_SECONDS)
        finally:
            os.kill(self.worker.pid, signal.SIGCONT)


async def measure(variant: Load, agents: int, pace: Pace, options: Options, results: load_report.Results) -> None:
    say(f"{variant.name}: {agents} agents, {pace.tokens} tokens")
    with tempfile.TemporaryDirectory(prefix="load-", ignore_cleanup_errors=True) as name, ExitStack() as running:
        settings = ["--db-filename", f"{name}/temporal.db", *devserver.FAST, *devserver.KILLABLE, "--log-level", "warn"]
        server, address = running.enter_context(dev_server(*settings))
        gateway_pid, url = running.enter_context(gateway(pace))
        os.environ.update(
            AI_GATEWAY_BASE_URL=f"{url}/v3/ai",
            AI_GATEWAY_API_KEY="load",
            OPEN_METEO_GEOCODING_URL=f"{url}/v1/search",
            NO_PROXY="127.0.0.1",
            LOAD_SLOTS=str(variant.slots or ""),
        )
        worker = LoadWorker(variant, address, Path(name))
        running.callback(worker.stop)
        client = await Client.connect(address)
        versions = await asyncio.to_thread(worker.read)
        results.versions |= {key: version for key, version in versions.items() if version}
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            measurement = Measurement(client, worker, variant, http)
            await measurement.warm_up(pace)
            if options.burn:
                running.enter_context(busy_cores())
            run = await measurement.run(agents, pace, options.stop, {"server": server.pid, "gateway": gateway_pid})
    results.runs.append(run)
    say(f"    {load_report.line(run)}")


async def run(options: Options) -> load_report.Results:
    # SIGTERM, as from `timeout`, has to stop all the processes too.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    since = time.monotonic()
    pace = Pace(options.first, options.tokens, options.rate, options.limit)
    command = " ".join(["uv run benchmarks/load.py", *sys.argv[1:]])
    results = load_report.Results(benchmark.machine(), benchmark.versions(), command, pace.tokens)
    wanted = [variant for variant in VARIANTS if variant.name in options.variants]
    chosen = [variant for variant in wanted if not (options.no_peers and variant.module.startswith("peer_"))]
    for variant in chosen:
        for agents in options.agents:
            await measure(variant, agents, pace, options, results)
    # The CPU time of a token: the same number of agents, with answers ten times as long that take the same time.
    longer = replace(pace, tokens=pace.tokens * 10, rate=pace.rate * 10)
    for variant in [] if options.no_slope else [v for v in chosen if v.name in (SAMPLE, FLOOR)]:
        for each in [longer] if SLOPE_AGENTS in options.agents else [pace, longer]:
            await measure(variant, SLOPE_AGENTS, each, options, results)
    results.minutes = (time.monotonic() - since) / 60
    return results


if __name__ == "__main__":
    options = parse()
    try:
        results = asyncio.run(run(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("Interrupted.")
        os._exit(130)
    folder = options.output or (Path(tempfile.mkdtemp(prefix="load-")) if options.quick else FOLDER)
    load_report.write(results, folder)
    say(f"Wrote {folder / 'load.*'}")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # not sys.exit(), see the end of main.py
