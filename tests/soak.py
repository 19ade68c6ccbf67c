"""Kills real processes with `kill -9` at random moments, for as long as you like. Not a part of the test suite.

    uv run python tests/soak.py --kills 50 --seed 1 --minutes 20

It shows that every run comes to its right answer, whatever is killed and when: `main.py`, the dev server or both, with
one run or two that share the server. And that no call that was done is done again: a run's history has each call just
once, and the services saw no more requests than the history has attempts. Only calls in flight at a kill are repeated.

The seed settles what is asked, and what is killed after how long. It cannot settle how far the processes are by then.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from temporalio.client import Client

sys.path.append(str(Path(__file__).resolve().parent.parent))

from standin import StandIn
from starlette.requests import Request
from starlette.responses import Response

import main
from offline import CITIES
from tools import WEATHER_CODES

PATIENCE = 90  # seconds from the last kill of a round to the answer; more is a hang
QUESTIONS = {
    "How is the weather in {}?": ["get_weather"],
    "How many people live in {}?": ["get_population"],
    "Weather and population of {}?": ["get_weather", "get_population"],
}


class SlowStandIn(StandIn):
    """Answers after up to a second, so that kills find calls in flight."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    async def _model(self, request: Request) -> Response:
        return await self._late(await super()._model(request))

    async def _geocoding(self, request: Request) -> Response:
        return await self._late(await super()._geocoding(request))

    async def _late(self, response: Response) -> Response:
        await asyncio.sleep(self._random.random())
        return response


@dataclass
class Run:
    id: str
    question: str
    cities: list[str]
    log: Path
    process: asyncio.subprocess.Process | None = None
    answer: str | None = None
    """None until it ended by itself."""

    @property
    def query(self) -> str:
        return f"{self.question.format(' and '.join(self.cities))} (run {self.id})"

    @property
    def calls(self) -> Counter[tuple[str, str]]:
        """What has to be done for the answer, once each."""
        lookups = [(tool, city) for city in self.cities for tool in QUESTIONS[self.question]]
        return Counter([("model", "1"), ("model", "2"), *lookups])

    @property
    def right_answer(self) -> str:
        return "".join(
            f"{city}: {'; '.join(_fact(tool, city) for tool in QUESTIONS[self.question])}.\n" for city in self.cities
        )

    def last_words(self, lines: int = 1) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    async def start(self, *arguments: str, env: dict[str, str]) -> tuple[int, str]:
        with self.log.open("a") as log:  # a file, so that a process that hangs has said something
            command = [sys.executable, str(self.log.parent / "main.py"), *arguments]
            self.process = await asyncio.create_subprocess_exec(
                *command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        try:
            out, _ = await self.process.communicate()
        finally:
            if self.process.returncode is None:
                self.process.kill()
        return await self.process.wait(), out.decode()


def _fact(tool: str, city: str) -> str:
    *_, population, temperature, code, wind = CITIES[city]
    if tool == "get_population":
        return f"population {population:,}"
    return f"{temperature:g} °C, {WEATHER_CODES[code]}, wind {wind:g} km/h"


class Soak:
    def __init__(self, options: argparse.Namespace, folder: Path, standin: StandIn, client: Client) -> None:
        self.options, self.folder, self.standin, self.client = options, folder, standin, client
        self.environment = {**os.environ, **standin.environment}
        self.kills: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.runs = self.right = self.hangs = self.twice = self.repeated = self.beyond = self.left_behind = 0
        self._last_kill = 0.0

    async def round(self, number: int) -> None:
        plan = random.Random(f"{self.options.seed} {number}")
        # No city twice: its lookups tell whose they are.
        cities = plan.sample([city for city, facts in CITIES.items() if facts[4] is not None], 6)
        runs = []
        for name in "ab"[: plan.randint(1, 2)]:
            mine = [cities.pop() for _ in range(plan.randint(1, 3))]
            id = f"soak-{number}-{name}"
            runs.append(Run(id, plan.choice(list(QUESTIONS)), mine, self.folder / f"{id}.log"))
        if plan.random() < 0.25:
            shutil.rmtree(main.STATE)  # then the server may also be killed while it makes its database
        self.standin.calls.clear()
        self.standin.lookups.clear()
        before, self._last_kill = self.kills.copy(), 0.0
        following = [asyncio.create_task(self._follow(run)) for run in runs]
        try:
            await self._disturb(runs, plan)
            done, hung = await asyncio.wait(following, timeout=PATIENCE)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        for task in done:
            task.result()

        kills = self.kills - before
        right = sum(run.answer == run.right_answer for run in runs)
        self.runs += len(runs)
        self.right += right
        self.hangs += len(hung)
        twice = repeated = 0
        if not hung:
            if main._answers(main.PORT):
                self.left_behind += 1
                print("the dev server was left behind")
            twice, repeated = await self._count(runs)
            at_once = sum(run.calls.total() - 2 for run in runs)  # all the lookups; a model call is on its own
            self.beyond += max(0, repeated - kills.total() * at_once)
        self.twice += twice
        self.repeated += repeated
        killed = ", ".join(f"{count} {what}" for what, count in sorted(kills.items())) or "none"
        print(
            f"round {number}: {len(runs)} run(s), {sum(len(run.cities) for run in runs)} cities, kills: {killed}; "
            f"right {right}, hangs {len(hung)}, done twice {twice}, repeated in flight {repeated}",
            flush=True,
        )
        for run in runs:
            if run.answer != run.right_answer:
                print(f"{run.query}\nexpected {run.right_answer!r}\ngot {run.answer!r}\n{run.last_words(40)}")
                print((main.STATE / "server.log").read_text()[-4000:], flush=True)

    async def _follow(self, run: Run) -> None:
        """Start a run, and again after each kill, until it ends by itself."""
        arguments = [run.query, "--id", run.id]
        while True:
            status, out = await run.start(*arguments, env=self.environment)
            arguments = ["--id", run.id]
            if status == 1 and "there is no run called" in run.last_words():
                arguments = [run.query, *arguments]  # killed before it had started the run
            elif status != -signal.SIGKILL:
                break
        run.answer = out
        if self._last_kill:
            self.seconds.append(time.monotonic() - self._last_kill)

    async def _disturb(self, runs: list[Run], plan: random.Random) -> None:
        for _ in range(plan.randint(1, 4)):
            wait, what, whom = plan.uniform(0, 6), plan.choice(["worker", "server", "both"]), plan.choice(runs)
            await asyncio.sleep(wait)
            if all(run.answer is not None for run in runs) or self.kills.total() >= self.options.kills:
                return
            server = what != "worker" and self.kill_server()
            worker = what != "server" and whom.process is not None and whom.process.returncode is None
            if worker and whom.process is not None:
                whom.process.kill()
            if server or worker:
                self.kills["both" if server and worker else "server" if server else "worker"] += 1
                self._last_kill = time.monotonic()

    def kill_server(self) -> bool:
        with suppress(OSError, ValueError):
            pid = int((main.STATE / "server.pid").read_text())
            # The file outlives the server, and the system may have given the id to somebody else.
            shown = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
            if str(main.STATE) in shown.stdout:
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    async def _count(self, runs: list[Run]) -> tuple[int, int]:
        """How many calls were done again after they were done, and how many because they were in flight."""
        twice: Counter[tuple[str, str]] = Counter()
        needed: Counter[str] = Counter()
        attempts: Counter[str] = Counter()
        async with main.temporal_server():
            for run in runs:
                history = await main.patiently(self.client.get_workflow_handle(run.id).fetch_history)
                calls: dict[int, tuple[str, str]] = {}
                done: Counter[tuple[str, str]] = Counter()
                for event in history.events:
                    if event.HasField("activity_task_scheduled_event_attributes"):
                        [given] = event.activity_task_scheduled_event_attributes.input.payloads
                        call = json.loads(given.data)
                        model = "number" in call
                        calls[event.event_id] = (
                            ("model", str(call["number"])) if model else (call["tool"], call["arguments"]["city"])
                        )
                    elif event.HasField("activity_task_started_event_attributes"):
                        started = event.activity_task_started_event_attributes
                        attempts[_request(run, calls[started.scheduled_event_id])] += started.attempt
                    elif event.HasField("activity_task_completed_event_attributes"):
                        done[calls[event.activity_task_completed_event_attributes.scheduled_event_id]] += 1
                twice += (Counter(calls.values()) - run.calls) + (done - run.calls)
                needed.update(_request(run, call) for call in run.calls)
        requests = Counter(self.standin.lookups)
        for model_call in self.standin.calls:
            [run] = [run for run in runs if run.query == model_call.query]
            requests[_request(run, ("model", "2" if model_call.tool_results else "1"))] += 1
        return twice.total() + (requests - attempts).total(), (requests - needed).total()


def _request(run: Run, call: tuple[str, str]) -> str:
    """What the services see of a call: a lookup does not tell for which tool it is."""
    what, which = call
    return f"{run.id} {which}" if what == "model" else which


async def soak(options: argparse.Namespace, folder: Path) -> bool:
    main.STATE = folder / ".temporal"
    for file in Path(main.__file__).parent.glob("*.py"):
        shutil.copy(file, folder)
    for name in [name for name in os.environ if name.startswith(("TEMPORAL_", "AI_GATEWAY_", "AI_MODEL"))]:
        del os.environ[name]
    async with main.temporal_server() as (config, server):
        client = await main.connect(config, server)
    since, number = time.monotonic(), 0
    with SlowStandIn(options.seed).serving() as standin:
        it = Soak(options, folder, standin, client)
        try:
            while (
                not it.hangs  # the next rounds would work on what hangs, too
                and it.kills.total() < options.kills
                and time.monotonic() - since < options.minutes * 60
                and (options.rounds is None or number < options.rounds)
            ):
                number += 1
                await it.round(number)
        finally:
            it.kill_server()  # there is none, unless something went wrong
    clean = not main._answers(main.PORT) and not it.left_behind
    seconds = it.seconds or [0.0]
    print(
        f"\nseed {options.seed}, {number} rounds in {(time.monotonic() - since) / 60:.1f} minutes\n"
        f"kills: worker {it.kills['worker']}, server {it.kills['server']}, both {it.kills['both']}\n"
        f"right answers: {it.right} of {it.runs} runs, hangs: {it.hangs}\n"
        f"completed calls done twice: {it.twice}\n"
        f"calls repeated because they were in flight at a kill: {it.repeated}, {it.beyond} more than possible\n"
        f"seconds from the last kill to the answer: median {statistics.median(seconds):.1f}, max {max(seconds):.1f}\n"
        f"dev server left behind: {'no' if clean else 'YES'}"
    )
    return clean and it.right == it.runs and not (it.hangs or it.twice or it.beyond)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill main.py and its dev server at random, and see what is lost.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=50, help="stop after that many")
    parser.add_argument("--minutes", type=float, default=20, help="start no round after that many")
    parser.add_argument("--rounds", type=int, help="stop after that many")
    options = parser.parse_args()
    if main._answers(main.PORT) or main._answers(main.UI_PORT):
        sys.exit(
            f"port {main.PORT} or {main.UI_PORT} is taken: stop what uses it, the soak needs a dev server of its own"
        )
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        passed = asyncio.run(soak(options, Path(folder).resolve()))
    sys.stdout.flush()
    os._exit(0 if passed else 1)  # as main.py does: the Temporal runtime may crash an interpreter that ends
