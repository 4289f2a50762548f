"""What is written: JSON, a table in Markdown, a plot in SVG, and both put into docs/performance.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.figures import Row, Spread
from benchmarks.harness.window import Measured

#: Cores that others may use before a table says so.
QUIET = 0.1


def as_json(rounds: Sequence[Mapping[str, Measured]], versions: Mapping[str, str]) -> str:
    """Return every run of every round."""
    runs = [{name: run.as_json() for name, run in each.items()} for each in rounds]
    return json.dumps({"versions": versions, "rounds": runs}, indent=1)


def table(benchmark: Benchmark, rows: Sequence[Row], rounds: int) -> str:
    """Return a table with a line for each variant."""
    more = list(dict.fromkeys(key for row in rows for key in row.more if key != benchmark.figure))
    head = [
        "variant", _title(benchmark), f"ratio to {benchmark.reference}",
        "client CPU, µs each", "broker", "database", *more,
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in rows:
        figures = [f"{row.client:,.0f}", f"{row.broker:,.0f}", f"{row.database:,.0f}"]
        further = [f"{row.more[key]:.1f}" if key in row.more else "" for key in more]
        lines.append(
            [
                row.name,
                _spread(row.value, "{:,.1f}" if benchmark.figure else "{:,.0f}"),
                _spread(row.ratio, "{:.2f}"),
                *figures,
                *further,
            ]
        )
    disturbed = max(row.others for row in rows)
    note = f"Rounds: {rounds}, of {benchmark.count:,} {benchmark.unit} each: median (smallest to largest)."
    if disturbed > QUIET:
        note += f" **Disturbed**: other programs used up to {disturbed:.1f} cores."
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", note])


def _title(benchmark: Benchmark) -> str:
    return benchmark.figure or f"{benchmark.unit} a second"


def _spread(spread: Spread, form: str) -> str:
    low, high = form.format(spread.low), form.format(spread.high)
    middle = form.format(spread.median)
    return middle if low == high else f"{middle} ({low} to {high})"


def plot(benchmark: Benchmark, rows: Sequence[Row]) -> str:
    """Return an SVG picture: a bar for each ratio, with a line from the smallest to the largest."""
    left, width, step = 260, 400, 26
    longest = max(row.ratio.high for row in rows) or 1.0

    def x(ratio: float) -> float:
        return left + width * ratio / longest

    parts = []
    for number, row in enumerate(rows):
        y = step * number + 34
        parts += [
            f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(row.name)}</text>',
            f'<rect x="{left}" y="{y}" width="{x(row.ratio.median) - left:.1f}" height="16" fill="#c8102e"/>',
            f'<path d="M{x(row.ratio.low):.1f} {y + 8}H{x(row.ratio.high):.1f}" stroke="#333" stroke-width="2"/>',
            f'<text x="{x(row.ratio.high) + 8:.1f}" y="{y + 12}">{row.ratio.median:.2f}</text>',
        ]
    title = escape(f"{_title(benchmark)}, as a ratio to {benchmark.reference}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {step * len(rows) + 44}"'
        ' font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n<text x="{left}" y="20" font-weight="bold">{title}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def update(page: Path, name: str, content: str) -> None:
    """Replace what `page` holds between the two marks of a benchmark. Raises ValueError if it has none."""
    begin, end = f"<!-- bench {name} -->", f"<!-- end {name} -->"
    text = page.read_text()
    changed, found = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL
    )
    if not found:
        raise ValueError(f"{page.name} has no place for {name}: add the lines {begin} and {end}")
    page.write_text(changed)
