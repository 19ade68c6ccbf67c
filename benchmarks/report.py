"""Writes what run.py measured: results.json has every figure, results.md the tables, results.svg the picture.

uv run benchmarks/report.py      # writes the tables and the picture again from results.json
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from xml.sax.saxutils import escape

import pydantic
import work

SAMPLE, FLOOR, OBVIOUS = "variant_sample", "variant_floor", "variant_obvious"
PEERS = ["peer_openai_agents", "peer_pydantic_ai"]
VARIANTS = [SAMPLE, FLOOR, OBVIOUS, *PEERS]

NAMES = {
    SAMPLE: "this sample",
    FLOOR: "bare workflow",
    OBVIOUS: "obvious version",
    "peer_openai_agents": "OpenAI Agents",
    "peer_pydantic_ai": "Pydantic AI",
}

NOTES = {
    SAMPLE: "workflow.py, durable.py and activities.py as they are, with an instant model and instant tools",
    FLOOR: "the floor: the same activities in a loop written by hand, with no transcript (the SDK is loaded too)",
    OBVIOUS: "the same SDK and loop, but each call just handed to an activity with the whole transcript; "
    "the timers that it writes while calls take time do not show here",
    "peer_openai_agents": "its Temporal plugin, with its defaults; `max_turns` raised, traces recorded but not sent",
    "peer_pydantic_ai": "its Temporal capability, with its defaults; the limit of 50 requests lifted",
}


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Workflow:
    """One workflow, as the server describes it."""

    seconds: float
    history_bytes: int
    history_events: int


@dataclass
class Sample:
    """Some workflows, one after the other; the CPU time is the worker's, for each."""

    server: str
    variant: str
    turns: int
    workflows: list[Workflow]
    cpu_seconds: float


@dataclass
class Batch:
    """Some workflows at once."""

    server: str
    variant: str
    turns: int
    count: int
    per_second: float


@dataclass
class Memory:
    """Peak of a worker's memory over the whole benchmark."""

    server: str
    variant: str
    bytes: int


@dataclass
class Results:
    machine: str
    versions: dict[str, str]
    turns: list[int]
    minutes: float = 0
    samples: list[Sample] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    @property
    def variants(self) -> list[str]:
        return [v for v in VARIANTS if any(sample.variant == v for sample in self.samples)]

    @property
    def servers(self) -> list[str]:
        return list(dict.fromkeys(sample.server for sample in self.samples))

    def _samples(self, server: str, variant: str, turns: int) -> list[Sample]:
        return [s for s in self.samples if (s.server, s.variant, s.turns) == (server, variant, turns)]

    def _median(self, get: Callable[[Workflow], float], variant: str, turns: int, server: str) -> float:
        return median(get(one) for sample in self._samples(server, variant, turns) for one in sample.workflows)

    def kilobytes(self, variant: str, turns: int, server: str = "tuned") -> float:
        return self._median(lambda one: one.history_bytes / 1000, variant, turns, server)

    def events(self, variant: str, turns: int, server: str = "tuned") -> float:
        return self._median(lambda one: one.history_events, variant, turns, server)

    def milliseconds(self, variant: str, turns: int, server: str = "tuned") -> float:
        """Time per activity."""
        return self._median(lambda one: one.seconds * 1000 / work.activities(turns), variant, turns, server)

    def cpu(self, variant: str, turns: int, server: str = "tuned") -> float:
        """CPU milliseconds of the worker per workflow."""
        return median(sample.cpu_seconds * 1000 for sample in self._samples(server, variant, turns))

    def per_second(self, variant: str, server: str = "tuned") -> float:
        return median(b.per_second for b in self.batches if (b.server, b.variant) == (server, variant))

    def megabytes(self, variant: str, server: str = "tuned") -> float:
        return max(m.bytes / 1e6 for m in self.memory if (m.server, m.variant) == (server, variant))


# ── Targets ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Target:
    text: str
    measured: str
    met: bool


def targets(results: Results) -> list[Target]:
    """What this sample is meant to reach on the tuned server, as far as the turns that were run can tell."""
    r, turns = results, results.turns
    first, last = turns[0], turns[-1]
    long = [t for t in turns if t >= 30] or [last]
    peers = [v for v in PEERS if v in r.variants]

    history = [r.kilobytes(SAMPLE, t) / r.kilobytes(FLOOR, t) for t in turns]
    speed = [r.milliseconds(SAMPLE, t) / r.milliseconds(FLOOR, t) for t in (first, last)]

    def ahead(figure: Callable[[str, int], float], at: list[int]) -> list[float]:
        """How far the better of the two peers is behind."""
        return [min(figure(peer, t) for peer in peers) / figure(SAMPLE, t) for t in at]

    found = [
        Target("history at most 1.1 times the floor at every T", times(history), max(history) <= 1.1),
        Target(
            f"time per activity at most 1.3 times the floor at T = {first}, {last}", times(speed), max(speed) <= 1.3
        ),
    ]
    compared = [
        ("history", r.kilobytes, turns),
        ("time per activity", r.milliseconds, long),
        ("worker CPU", r.cpu, long),
    ]
    for name, figure, at in compared if peers else []:
        factors = ahead(figure, at)
        text = f"{name} below both peers at T = {', '.join(map(str, at))}"
        found.append(Target(text, f"the better one takes {times(factors)}", min(factors) > 1))
    if "stock" in r.servers:
        stock = r.milliseconds(SAMPLE, first, "stock") / r.milliseconds(SAMPLE, first)
        text = f"at least 3 times faster per activity than on a stock dev server at T = {first}"
        found.append(Target(text, times([stock]), stock >= 3))
    return found


def times(factors: list[float]) -> str:
    return ", ".join(f"{factor:.2f}" for factor in factors) + " times"


# ── The tables ───────────────────────────────────────────────────────────────────────────────────────────


def markdown(results: Results) -> str:
    r = results
    first, last = r.turns[0], r.turns[-1]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(r.versions.items()))
    batch = r.batches[0]
    rounds = {
        server: sum((s.server, s.variant, s.turns) == (server, SAMPLE, first) for s in r.samples)
        for server in ("tuned", "stock")
    }
    command = f"uv run benchmarks/run.py --rounds {rounds['tuned']} --stock-rounds {rounds['stock']}"

    def by_turns(figure: Callable[[str, int], float], show: Callable[[float], str] = number) -> str:
        return table(
            ["", *(f"T = {turns}" for turns in r.turns)],
            [[NAMES[v], *(show(figure(v, turns)) for turns in r.turns)] for v in r.variants],
        )

    def on_each_server(title: str, figure: Callable[[str, int, str], float]) -> str:
        def section(server: str) -> str:
            return f"## {title} on the {server} server, ms\n\n{by_turns(lambda v, turns: figure(v, turns, server))}"

        return "\n".join(map(section, r.servers))

    def by_server(figure: Callable[[str, str], float]) -> str:
        return table(
            ["", *r.servers],
            [[NAMES[v], *(number(figure(v, server)) for server in r.servers)] for v in r.variants],
        )

    summary = table(
        [
            "",
            f"history at T = {last}, KB",
            f"ms per activity at T = {first}",
            f"ms per activity at T = {last}",
            f"worker CPU at T = {last}, ms",
            f"workflows a second, {batch.count} at once",
            "peak memory, MB",
        ],
        [
            [
                NAMES[v],
                *(
                    number(figure)
                    for figure in (
                        r.kilobytes(v, last),
                        r.milliseconds(v, first),
                        r.milliseconds(v, last),
                        r.cpu(v, last),
                        r.per_second(v),
                        r.megabytes(v),
                    )
                ),
            ]
            for v in r.variants
        ],
    )
    return f"""\
# Results

Written by `{command}`, in one run of {r.minutes:.0f} minutes.

- Work: T turns of one model call and two tool calls at once, then the answer, which makes
  {work.activities(1) - 1} T + 1 activities. Model and tools take no time; a tool returns {work.RESULT_BYTES:,} bytes.
- Machine: {r.machine}, with the server, the worker and the client on it.
- Versions: {versions}.
- Servers: *tuned* is the dev server with the settings of main.py (and a database file), *stock* is a plain
  `temporal server start-dev` (in memory).
- Figures are medians; rounds: {rounds["tuned"]} on the tuned server, {rounds["stock"]} on the stock one. In each round
  all variants take turns. The time of a workflow is the server's, from its start to its end.

{table(["", "what it is"], [[NAMES[v], NOTES[v]] for v in r.variants])}
## On the tuned server

{summary}
## Targets

{table(["target", "measured", ""], [[t.text, t.measured, "met" if t.met else "**missed**"] for t in targets(r)])}
## History, KB

{by_turns(r.kilobytes)}
## History, events

{by_turns(r.events, "{:,.0f}".format)}
{on_each_server("Time per activity", r.milliseconds)}
{on_each_server("Worker CPU per workflow", r.cpu)}
## Workflows a second, {batch.count} at once, T = {batch.turns}

{by_server(r.per_second)}
## Peak memory of the worker, MB

{by_server(r.megabytes)}"""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:" if rows[0][i][:1].isdigit() else "---" for i in range(1, len(head))], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float) -> str:
    """With three digits, or all there are before the point."""
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"


# ── The picture ──────────────────────────────────────────────────────────────────────────────────────────

COLORS = {
    SAMPLE: "#0b62d6",
    FLOOR: "#5b6470",
    OBVIOUS: "#a3742c",
    "peer_openai_agents": "#c2362b",
    "peer_pydantic_ai": "#8a3fa8",
}
DASHES = {FLOOR: 'stroke-dasharray="2 4"', OBVIOUS: 'stroke-dasharray="7 5"'}
"""For lines that may lie on another one."""

INK, FAINT, GRID = "#1f2328", "#59636e", "#d9dee3"

WIDTH, HEIGHT = 960, 400
PANEL_LEFT, PANEL_WIDTH, PANEL_STEP = 56, 270, 480
TOP, BOTTOM = 84, 340
LABEL_HEIGHT = 17


def svg(results: Results) -> str:
    """Two charts side by side, each line labelled at its end. Its own white ground, for light and dark pages."""
    r = results
    last = r.turns[-1]
    charts = [
        Chart("History of a run", "MB", 2, lambda v, turns: r.kilobytes(v, turns) / 1000),
        Chart("Time per activity", "ms", 1, r.milliseconds),
    ]
    drawn = "".join(draw(chart, PANEL_STEP * i, r.turns, r.variants) for i, chart in enumerate(charts))
    title = f"History size and time per activity of agent runs with up to {last} turns"
    font = "ui-sans-serif, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
    note = f"A turn: one model call and two tool calls at once, all instant. {r.machine}."
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="{font}" font-size="13">
<title>{escape(title)}</title>
<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>
{drawn}{text(PANEL_LEFT, HEIGHT - 14, note, FAINT, 'font-size="11"')}</svg>
"""


@dataclass
class Chart:
    """What to draw: a figure for each variant by turns, and how many digits to show after the point."""

    title: str
    unit: str
    digits: int
    figure: Callable[[str, int], float]


def draw(chart: Chart, left: float, turns: list[int], variants: list[str]) -> str:
    """The chart with its title, a grid, and a line for each variant."""
    figure = chart.figure
    left += PANEL_LEFT
    right = left + PANEL_WIDTH
    steps = ticks(max(figure(v, t) for v in variants for t in turns))

    def x(value: float) -> float:
        return left + value / turns[-1] * PANEL_WIDTH

    def y(value: float) -> float:
        return BOTTOM - value / steps[-1] * (BOTTOM - TOP)

    out = [
        text(left, 32, chart.title, INK, 'font-size="17" font-weight="600"'),
        text(left, 52, f"{chart.unit}, by number of turns", FAINT),
    ]
    for step in steps:
        out.append(f'<path d="M{left} {y(step):.1f}H{right}" stroke="{GRID}"/>\n')
        out.append(text(left - 8, y(step) + 4.5, f"{step:g}", FAINT, 'text-anchor="end"'))
    for turn in turns:
        out.append(text(x(turn), BOTTOM + 20, str(turn), FAINT, 'text-anchor="middle"'))

    ends = spread({v: y(figure(v, turns[-1])) for v in variants})
    for v in reversed(variants):  # this sample last, on top of the others
        points = [(x(t), y(figure(v, t))) for t in turns]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        style = 'stroke-width="3"' if v == SAMPLE else 'stroke-width="2"'
        out.append(f'<polyline points="{line}" fill="none" stroke="{COLORS[v]}" {style} {DASHES.get(v, "")}/>\n')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{COLORS[v]}"/>\n' for px, py in points]
        weight = 'font-weight="600"' if v == SAMPLE else ""
        label = f"{NAMES[v]} {figure(v, turns[-1]):.{chart.digits}f}"
        out.append(f'<path d="M{right + 4} {points[-1][1]:.1f}L{right + 12} {ends[v]:.1f}" stroke="{COLORS[v]}"/>\n')
        out.append(text(right + 16, ends[v] + 4.5, label, COLORS[v], weight))
    return "".join(out)


def ticks(highest: float) -> list[float]:
    """Round numbers from zero to over the highest value, four to seven of them."""
    step = next(step for power in range(-3, 9) for m in (1, 2, 5) if highest / (step := m * 10.0**power) <= 6)
    return [step * i for i in range(int(highest / step) + 2)]


def spread(ends: dict[str, float]) -> dict[str, float]:
    """Move labels apart that would cover each other, upwards from the lowest one."""
    out: dict[str, float] = {}
    limit = float(BOTTOM)
    for variant, end in sorted(ends.items(), key=lambda item: -item[1]):
        out[variant] = min(end, limit)
        limit = out[variant] - LABEL_HEIGHT
    return out


def text(x: float, y: float, content: str, color: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" {more}>{escape(content)}</text>\n'


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────

_json = pydantic.TypeAdapter(Results)


def write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_bytes(_json.dump_json(results) + b"\n")
    (folder / "results.md").write_text(markdown(results), encoding="utf-8")
    (folder / "results.svg").write_text(svg(results), encoding="utf-8")
    for target in targets(results):
        print(f"{'met   ' if target.met else 'MISSED'}  {target.text}: {target.measured}")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    write(_json.validate_json((folder / "results.json").read_bytes()), folder)
