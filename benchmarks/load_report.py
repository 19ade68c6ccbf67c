"""Writes what load.py measured: load.json has every figure, load.md the tables, load.svg the picture.

uv run benchmarks/load_report.py      # writes the tables and the picture again from load.json
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import pydantic
import report
from report import BOTTOM, FAINT, GRID, HEIGHT, INK, PANEL_LEFT, TOP, WIDTH, Target, number, spread, table, text, ticks

GIVE_UP_SECONDS = 180
SLOTS = 2000
SAMPLE, FLOOR = "sample", "floor"

NAMES = {
    SAMPLE: "this sample",
    FLOOR: "bare workflow",
    "obvious": "obvious version",
    "obvious-slots": "obvious version, raised",
    "openai-agents": "OpenAI Agents",
    "openai-agents-slots": "OpenAI Agents, raised",
    "pydantic-ai": "Pydantic AI",
    "pydantic-ai-slots": "Pydantic AI, raised",
}
"""*Raised*: `SLOTS` activities at once."""

NOTES = {
    SAMPLE: "workflow, tools, gateway model and worker as they are",
    FLOOR: f"the floor: the same calls in a loop written by hand, {SLOTS:,} activities at once; no SDK, transcript, "
    "heartbeats or live text; one HTTP client for all, and the least code that reads the stream",
    "obvious": "each call just handed to an activity: the SDK's own `GatewayModel` and an HTTP client for each tool "
    "call; Temporal's default of 100 activities at once, and no heartbeats",
    "openai-agents": "its Temporal plugin with its defaults; the floor's client and code read the stream",
    "pydantic-ai": "its Temporal capability with its defaults; the floor's client and code read the stream",
}
for name in ("obvious", "openai-agents", "pydantic-ai"):
    NOTES[f"{name}-slots"] = f"the same with {SLOTS:,} activities at once"


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Run:
    """Some agents at once. CPU times are seconds of all of them together, memory is bytes."""

    variant: str
    agents: int
    tokens: int
    ideal: float
    seconds: float | None
    """From the first start to the last answer. None if not all agents answered."""
    answers: int
    failures: int
    start_seconds: float
    peak: int
    """Model calls in flight."""
    model_calls: int
    repeated: int
    """Model calls that had been made before."""
    refused: int
    tool_calls: int
    connections: int
    worker_cpu: float
    server_cpu: float | None
    gateway_cpu: float | None
    client_cpu: float
    memory: int
    """Of the worker, at the peak, over what it has when idle."""
    idle_memory: int

    @property
    def factor(self) -> float:
        return (self.seconds or GIVE_UP_SECONDS) / self.ideal

    @property
    def just_as_needed(self) -> bool:
        """Whether each call was made once."""
        return not self.repeated and (self.model_calls, self.tool_calls) == (2 * self.agents, self.agents)

    @property
    def megabytes(self) -> float:
        return self.memory / 1e6 / self.agents

    @property
    def outcome(self) -> str:
        if self.seconds is not None:
            return f"{number(self.seconds)} s"
        problem = f"{self.failures:,} failed" if self.failures else f"did not end in {GIVE_UP_SECONDS} s"
        return f"**{problem}**, {self.answers:,} answered"


@dataclass
class Results:
    machine: str
    versions: dict[str, str]
    command: str
    tokens: int
    minutes: float = 0
    runs: list[Run] = field(default_factory=list)

    @property
    def variants(self) -> list[str]:
        return [name for name in NAMES if any(run.variant == name for run in self.runs)]

    def of(self, variant: str) -> list[Run]:
        """The runs with answers of the usual length, by number of agents."""
        runs = [run for run in self.runs if (run.variant, run.tokens) == (variant, self.tokens)]
        return sorted(runs, key=lambda run: run.agents)

    def slope(self, variant: str, cpu: Callable[[Run], float | None]) -> float | None:
        """CPU microseconds of a token: what longer answers cost that take the same time. None if not measured."""
        for long in (run for run in self.runs if run.variant == variant and run.tokens > self.tokens):
            for short in (run for run in self.of(variant) if run.agents == long.agents):
                more, less = cpu(long), cpu(short)
                if more is not None and less is not None:
                    return (more - less) * 1e6 / (long.agents * (long.tokens - short.tokens))
        return None


def line(run: Run) -> str:
    """A run in a line, for who waits."""
    cpu = [milliseconds(run, seconds) for seconds in (run.worker_cpu, run.server_cpu)]
    return (
        f"{run.outcome}, {run.factor:.2f} times the ideal, {run.peak:,} calls in flight, {calls(run)} model calls, "
        f"{run.tool_calls:,} tool calls, {run.connections:,} connections; "
        f"an agent: {cpu[0]} ms worker, {cpu[1]} ms server, {run.megabytes:.2f} MB"
    )


def calls(run: Run) -> str:
    again = f" ({run.repeated:,} again)" if run.repeated else ""
    return f"{run.model_calls:,} of {2 * run.agents:,}{again}"


def milliseconds(run: Run, seconds: float | None) -> str:
    return "—" if seconds is None else number(seconds * 1000 / run.agents)


def targets(results: Results) -> list[Target]:
    """What this sample is meant to reach, as far as the runs can tell."""
    runs = results.of(SAMPLE)
    found = []
    for agents, limit in ((300, 1.3), (1000, 2)):
        for run in (run for run in runs if run.agents == agents):
            measured = f"{run.outcome}, {run.factor:.2f} times"
            met = run.seconds is not None and run.factor <= limit
            found.append(Target(f"{agents:,} agents within {limit:g} times the ideal", measured, met))
    if runs:
        made = ", ".join(f"{calls(run)} and {run.tool_calls:,} of {run.agents:,}" for run in runs)
        met = all(run.just_as_needed for run in runs)
        found.append(Target("model and tool calls made as often as needed", made, met))
        sizes = ", ".join(f"{run.megabytes:.2f} with {run.agents:,}" for run in runs)
        found.append(Target("below 0.3 MB of memory an agent", sizes, all(run.megabytes < 0.3 for run in runs)))
    for run in runs:
        for floor in (one for one in results.of(FLOOR) if one.agents == run.agents and one.seconds is not None):
            more = run.worker_cpu / floor.worker_cpu
            measured = f"{milliseconds(run, run.worker_cpu)} ms, {more:.2f} times"
            found.append(
                Target(
                    f"worker CPU an agent within 1.3 times the floor's, {run.agents:,} agents", measured, more <= 1.3
                )
            )
    if (token := results.slope(SAMPLE, lambda run: run.worker_cpu)) is not None:
        found.append(Target("30 µs of worker CPU for a token", f"{token:.0f} µs", token <= 30))
    return found


# ── The tables ───────────────────────────────────────────────────────────────────────────────────────────


def markdown(results: Results) -> str:
    r = results
    versions = ", ".join(f"{name} {version}" for name, version in sorted(r.versions.items()))
    main = [run for variant in r.variants for run in r.of(variant)]
    others = max(((run.gateway_cpu or 0) + run.client_cpu) / (run.seconds or GIVE_UP_SECONDS) for run in main)
    rows = [
        [
            NAMES[run.variant],
            f"{run.agents:,}",
            run.outcome,
            f"{run.factor:.2f}" if run.seconds else "—",
            f"{run.peak:,}",
            calls(run),
            f"{run.tool_calls:,} of {run.agents:,}",
            milliseconds(run, run.worker_cpu),
            milliseconds(run, run.server_cpu),
            f"{run.megabytes:.2f}",
            f"{run.connections:,}",
        ]
        for run in main
    ]
    head = [
        *("", "agents", "time", "times the ideal", "model calls in flight", "model calls", "tool calls"),
        *("worker CPU an agent, ms", "server CPU an agent, ms", "worker memory an agent, MB", "connections"),
    ]
    slopes = [
        [NAMES[v], *("—" if value is None else number(value) for value in (worker, server))]
        for v in r.variants
        if (worker := r.slope(v, lambda run: run.worker_cpu)) is not None
        for server in [r.slope(v, lambda run: run.server_cpu)]
    ]
    of_a_token = (
        table(["", "worker CPU a token, µs", "server CPU a token, µs"], slopes) if slopes else "Not measured.\n"
    )
    reached = [[t.text, t.measured, "met" if t.met else "**missed**"] for t in targets(r)]
    return f"""\
# Results under load

Written by `{r.command}`, in {r.minutes:.0f} minutes.

- Work: a model call that asks for a tool, a tool call that is answered at once, a model call that answers with
  {r.tokens} tokens. Without any overhead it takes {main[0].ideal:g} s. All agents start at once.
- Machine: {r.machine}, with the server, the gateway, the worker and the client on it.
- Gateway and client together took at most {others:.0%} of one core.
- Versions: {versions}.
- The dev server has the settings of main.py and a database file. Each row has a server, a gateway and a worker of its
  own, and one agent has run before the clock starts. Seconds are the server's, from the first start to the last end.
- Memory is what the worker has at its peak over what it has when idle. A connection is counted once, however many
  requests it carries.

{table(["", "what it is"], [[NAMES[v], NOTES[v]] for v in r.variants])}
## Many agents at once

{table(head, rows)}
## Targets

{table(["target", "measured", ""], reached) if reached else "This sample was not measured."}
## CPU time of a token

What answers of ten times as many tokens cost that take as long, for each token more:

{of_a_token}"""


# ── The picture ──────────────────────────────────────────────────────────────────────────────────────────

COLORS = {
    SAMPLE: report.COLORS[report.SAMPLE],
    FLOOR: report.COLORS[report.FLOOR],
    "obvious": report.COLORS[report.OBVIOUS],
    "openai-agents": report.COLORS["peer_openai_agents"],
    "pydantic-ai": report.COLORS["peer_pydantic_ai"],
}
PLOT_WIDTH = 560


def svg(results: Results) -> str:
    """Seconds by number of agents, a line for each variant. What did not end is drawn where it was given up."""
    lines = {v: {run.agents: run.seconds or GIVE_UP_SECONDS for run in results.of(v)} for v in results.variants}
    agents = sorted({number for points in lines.values() for number in points})
    ideal = results.of(results.variants[0])[0].ideal
    steps = ticks(max(seconds for points in lines.values() for seconds in points.values()))
    right = PANEL_LEFT + PLOT_WIDTH

    def x(value: float) -> float:
        return PANEL_LEFT + value / agents[-1] * PLOT_WIDTH

    def y(value: float) -> float:
        return BOTTOM - value / steps[-1] * (BOTTOM - TOP)

    def polyline(points: list[tuple[float, float]], style: str) -> str:
        return f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}" fill="none" {style}/>\n'

    out = [
        text(PANEL_LEFT, 32, "Many agents at once", INK, 'font-size="17" font-weight="600"'),
        text(PANEL_LEFT, 52, "seconds from the first start to the last answer, by number of agents", FAINT),
    ]
    for step in steps:
        out.append(f'<path d="M{PANEL_LEFT} {y(step):.1f}H{right}" stroke="{GRID}"/>\n')
        out.append(text(PANEL_LEFT - 8, y(step) + 4.5, f"{step:g}", FAINT, 'text-anchor="end"'))
    out += [text(x(count), BOTTOM + 20, f"{count:,}", FAINT, 'text-anchor="middle"') for count in agents]
    out.append(polyline([(PANEL_LEFT, y(ideal)), (right, y(ideal))], f'stroke="{INK}"'))
    last = {v: points[max(points)] for v, points in lines.items()}
    labels = spread({v: y(seconds) for v, seconds in last.items()} | {"ideal": y(ideal)})
    out.append(text(right + 16, labels["ideal"] + 4.5, f"ideal {ideal:g}", INK))
    for v in reversed(results.variants):  # this sample last, on top of the others
        color = COLORS[v.removesuffix("-slots")]
        points = [(x(count), y(seconds)) for count, seconds in lines[v].items()]
        style = f'stroke="{color}" stroke-width="{3 if v == SAMPLE else 2}"'
        out.append(polyline(points, style + (' stroke-dasharray="7 5"' if v.endswith("-slots") else "")))
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>\n' for px, py in points]
        out.append(
            f'<path d="M{points[-1][0] + 4:.1f} {points[-1][1]:.1f}L{right + 12} {labels[v]:.1f}" stroke="{color}"/>\n'
        )
        ended = f"{last[v]:.0f}" if results.of(v)[-1].seconds else "did not end"
        out.append(
            text(right + 16, labels[v] + 4.5, f"{NAMES[v]}: {ended}", color, 'font-weight="600"' * (v == SAMPLE))
        )
    font = "ui-sans-serif, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
    note = f"Two slow model calls and a tool call each. Raised: {SLOTS:,} activities at once. {results.machine}."
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="{font}" font-size="13">
<title>{escape("Seconds until many agents at once have answered, by number of agents")}</title>
<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>
{"".join(out)}{text(PANEL_LEFT, HEIGHT - 14, note, FAINT, 'font-size="11"')}</svg>
"""


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────

_json = pydantic.TypeAdapter(Results)


def write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "load.json").write_bytes(_json.dump_json(results) + b"\n")
    (folder / "load.md").write_text(markdown(results), encoding="utf-8")
    (folder / "load.svg").write_text(svg(results), encoding="utf-8")
    for target in targets(results):
        print(f"{'met   ' if target.met else 'MISSED'}  {target.text}: {target.measured}")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    write(_json.validate_json((folder / "load.json").read_bytes()), folder)
