"""Kills real processes with `kill -9` at random moments, for as long as you like. Not a part of the test suite.

    uv run python tests/soak.py --kills 50 --seed 1 --minutes 20

Beside runs of one question there are conversations of several messages: follow-ups to open runs and to runs that are
over, messages that steer, stops (tests/soak_conversations.py).

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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError

sys.path.append(str(Path(__file__).resolve().parent.parent))

from conftest import copy_sample
from soak_conversations import Dialogue
from standin import StandIn
from starlette.requests import Request
from starlette.responses import Response

from app import command_line, devserver
from app.demo import CITIES
from app.server import patiently, temporal_server
from open_meteo import WEATHER_CODES
from plugin import DurableAgents

PATIENCE = 90  # seconds from the last kill of a round to the answers; more is a hang
MAX_ERRORS = 4  # as many as there are kills in a round: after another exit with an error, a run is given up
KILLS = ["worker killed", "server killed", "both killed"]
RESULTS = [
    *("runs", "conversations", "messages", "turns", "steering messages", "stopped turns", "right", "hangs"),
    *("exits with an error", "completed calls done twice", "calls in flight repeated"),
]
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
    process: asyncio.subprocess.Process | None = None
    errors: int = 0
    answer: str | None = None

    @property
    def is_over(self) -> bool:
        return self.answer is not None

    @property
    def query(self) -> str:
        return f"{self.question.format(' and '.join(self.cities))} (run {self.id})"

    @property
    def right_answer(self) -> str:
        lines = []
        for city in self.cities:
            *_, population, temperature, code, wind = CITIES[city]
            facts = {
                "get_weather": f"{temperature:g} °C, {WEATHER_CODES[code]}, wind {wind:g} km/h",
                "get_population": f"population {population:,}",
            }
            lines.append(f"{city}: {'; '.join(facts[tool] for tool in QUESTIONS[self.question])}.\n")
        return "".join(lines)

    @property
    def calls(self) -> dict[str, str]:
        """The calls that the answer takes, each with how the services see it: a lookup does not tell its tool."""
        model = {f"{command_line.DEFAULT_MODEL}, call {n}": f"{self.id} {n}" for n in (1, 2)}
        return model | {f'{tool}(city="{city}")': city for city in self.cities for tool in QUESTIONS[self.question]}


class Soak:
    def __init__(self, options: argparse.Namespace, folder: Path, standin: StandIn, client: Client) -> None:
        self.options, self.folder, self.standin, self.client = options, folder, standin, client
        self.rounds = 0
        self.total = Counter[str]()
        self.seconds: list[float] = []
        self.problems: list[str] = []
        self._last_kill = 0.0

    @property
    def kills(self) -> int:
        return sum(self.total[what] for what in KILLS)

    async def round(self) -> None:
        self.rounds += 1
        plan = random.Random(f"{self.options.seed} {self.rounds}")
        # No city twice: a lookup tells whose it is.
        cities = plan.sample([city for city, facts in CITIES.items() if facts[4] is not None], 12)
        runs = [
            Run(f"soak-{self.rounds}-{i}", plan.choice(list(QUESTIONS)), cities[3 * i :][: plan.randint(1, 3)])
            for i in range(plan.randint(1, 2))
        ]
        talks = [
            Dialogue.planned(
                plan,
                f"talk-{self.rounds}",
                cities[6:][: plan.randint(3, 6)],
                folder=self.folder,
                client=self.client,
                environment=self.standin.environment,
            )
        ]
        if plan.random() < 0.25:
            # So that the server is also killed while it makes its database.
            shutil.rmtree(devserver.STATE, ignore_errors=True)
        self.standin.calls.clear()
        self.standin.lookups.clear()
        before, kills, self._last_kill = self.total.copy(), self.kills, 0.0
        following = [asyncio.create_task(self._follow(run)) for run in runs]
        following += [asyncio.create_task(talk.converse()) for talk in talks]
        try:
            await self._disturb([*runs, *talks], plan)
            ended, hung = await asyncio.wait(following, timeout=PATIENCE)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        for task in ended:
            task.result()

        wrong = [run for run in runs if run.answer != run.right_answer]
        right = len(runs) - len(wrong)
        for talk in talks:
            problems = talk.problems(self.standin) if talk.is_over else [f"it came to no end {talk.errors}"]
            self.problems += [f"{talk.id}: {problem}" for problem in problems]
            right += not problems
            self.total.update(talk.figures())
        self.total.update({"runs": len(runs), "right": right, "hangs": len(hung)})
        for run in wrong:
            said = tail(self._log(run)) + tail(devserver.STATE / "server.log")
            self.problems.append(f"{run.query}\nexpected {run.right_answer!r}, got {run.answer!r}\n{said}")
        if wrong or hung:
            self.kill_server()
            shutil.rmtree(
                devserver.STATE, ignore_errors=True
            )  # or the next round would go on with what is left of this one
        else:
            if devserver.answers(devserver.PORT):
                self.problems.append("the dev server was left behind")
            twice = repeated = 0
            try:
                twice, repeated = await self._count(runs, talks)
            except RPCError as error:
                self.problems.append(f"round {self.rounds}: a history cannot be read: {error}")
            self.total.update({"completed calls done twice": twice, "calls in flight repeated": repeated})
            at_once = sum(len(run.calls) - 2 for run in runs)  # the lookups; a model call is on its own
            at_once += sum(len(talk.sent) for talk in talks)
            # A process that has its answer ends, too, and hands the calls that it makes for others over.
            ends = self.kills - kills + len(runs) + sum(len(talk.sent) for talk in talks)
            if twice or repeated > ends * at_once:
                self.problems.append(f"round {self.rounds}: {twice} done twice, {repeated} repeated, {at_once} at once")
        print(f"round {self.rounds}: {show(self.total - before)}", flush=True)

    def _log(self, run: Run) -> Path:
        return self.folder / f"{run.id}.log"

    async def _follow(self, run: Run) -> None:
        """Start a run, and again after each kill, until it is answered."""
        environment, arguments = {**os.environ, **self.standin.environment}, [run.query, "--id", run.id]
        while True:
            with self._log(run).open("a") as log:  # a file: what a process said is known even if it hangs
                command = [sys.executable, str(self.folder / "main.py"), *arguments]
                run.process = await asyncio.create_subprocess_exec(
                    *command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
                )
            try:
                out, _ = await run.process.communicate()
            finally:
                if run.process.returncode is None:
                    run.process.kill()
            if run.process.returncode == 0 or run.errors > MAX_ERRORS:
                break
            arguments = ["--id", run.id]
            last_words = tail(self._log(run)).strip().rpartition("\n")[2]
            if "there is no run called" in last_words:
                arguments = [run.query, *arguments]  # it was killed before it had started the run
            elif run.process.returncode != -signal.SIGKILL:
                run.errors += 1
                self.total["exits with an error"] += 1
                print(f"{run.id} ended with {run.process.returncode}: {last_words[:200]}", flush=True)
        run.answer = out.decode()
        if self._last_kill:
            self.seconds.append(time.monotonic() - self._last_kill)

    async def _disturb(self, runs: Sequence[Run | Dialogue], plan: random.Random) -> None:
        for _ in range(plan.randint(1, 4)):
            wait, what, run = plan.uniform(0, 6), plan.choice(KILLS), plan.choice(runs)
            await asyncio.sleep(wait)
            if all(other.is_over for other in runs) or self.kills >= self.options.kills:
                return
            server = what != KILLS[0] and await self._kill_server_soon()
            worker = run.process if what != KILLS[1] and run.process and run.process.returncode is None else None
            if worker:
                worker.kill()
            if server or worker:
                self.total[KILLS[0] if not server else KILLS[2] if worker else KILLS[1]] += 1
                self._last_kill = time.monotonic()

    async def _kill_server_soon(self) -> bool:
        """A server may be about to start."""
        for _ in range(50):
            if self.kill_server():
                return True
            await asyncio.sleep(0.1)
        return False

    def kill_server(self) -> bool:
        with suppress(OSError, ValueError):
            pid = int((devserver.STATE / "server.pid").read_text())
            # The file outlives the server, and by now the id may be somebody else's.
            shown = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
            if str(devserver.STATE) in shown.stdout:
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    async def _count(self, runs: list[Run], talks: list[Dialogue]) -> tuple[int, int]:
        """How many calls were made again after they were done, and how many because they were in flight."""
        twice = repeated = 0
        needed, requests, attempts = Counter[str](), Counter[str](), Counter[str]()
        for call in self.standin.calls:
            for run in [each for each in runs if each.query == call.query]:
                requests[f"{run.id} {2 if call.tool_results else 1}"] += 1
        requests.update(city for city in self.standin.lookups if any(city in run.cities for run in runs))
        async with temporal_server(DurableAgents()):
            for talk in talks:
                counted = await patiently(partial(talk.count, self.standin))
                twice, repeated = twice + counted[0], repeated + counted[1]
            for run in runs:
                history = await patiently(self.client.get_workflow_handle(run.id).fetch_history)
                scheduled: dict[int, str] = {}
                done = Counter[str]()
                for event in history.events:
                    if event.HasField("activity_task_scheduled_event_attributes"):
                        scheduled[event.event_id] = json.loads(event.user_metadata.summary.data)
                    elif event.HasField("activity_task_started_event_attributes"):
                        started = event.activity_task_started_event_attributes
                        name = scheduled[started.scheduled_event_id]
                        attempts[run.calls.get(name, name)] += started.attempt
                    elif event.HasField("activity_task_completed_event_attributes"):
                        done[scheduled[event.activity_task_completed_event_attributes.scheduled_event_id]] += 1
                once = Counter(run.calls.keys())
                twice += (Counter(scheduled.values()) - once).total() + (done - once).total()
                needed.update(run.calls.values())
        return twice + (requests - attempts).total(), repeated + (requests - needed).total()


def show(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {counts[what]}" for what in KILLS + RESULTS)


def tail(file: Path) -> str:
    return file.read_text()[-3000:] if file.exists() else ""


async def soak(options: argparse.Namespace, folder: Path) -> bool:
    devserver.STATE = folder / ".temporal"
    copy_sample(folder)
    for name in [name for name in os.environ if name.startswith(("TEMPORAL_", "AI_GATEWAY_", "AI_MODEL"))]:
        del os.environ[name]
    async with temporal_server(DurableAgents()) as server:
        pass
    since = time.monotonic()
    with SlowStandIn(options.seed).serving() as standin:
        it = Soak(options, folder, standin, server.client)
        try:
            while (
                it.kills < options.kills
                and it.rounds != options.rounds
                and time.monotonic() - since < options.minutes * 60
            ):
                await it.round()
        finally:
            left_behind = it.kill_server() or devserver.answers(devserver.PORT)
    seconds = it.seconds or [0.0]
    print(
        f"\nseed {options.seed}, {it.rounds} rounds, {it.kills} kills in {(time.monotonic() - since) / 60:.1f} minutes",
        show(it.total),
        f"seconds from the last kill to the answer: median {statistics.median(seconds):.1f}, max {max(seconds):.1f}",
        f"dev server left behind: {'YES' if left_behind else 'no'}",
        *it.problems,
        sep="\n",
    )
    return not it.problems and not it.total["exits with an error"] and not left_behind


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill main.py and its dev server at random, and see what is lost.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=50, help="stop after that many")
    parser.add_argument("--minutes", type=float, default=20, help="start no round after that many")
    parser.add_argument("--rounds", type=int, help="stop after that many")
    options = parser.parse_args()
    if devserver.answers(devserver.PORT) or devserver.answers(devserver.UI_PORT):
        sys.exit(f"port {devserver.PORT} or {devserver.UI_PORT} is taken, and the soak needs a dev server of its own")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        passed = asyncio.run(soak(options, Path(folder).resolve()))
    sys.stdout.flush()
    os._exit(0 if passed else 1)  # as main.py does: the Temporal runtime may crash an interpreter that ends
