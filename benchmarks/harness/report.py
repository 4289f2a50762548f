"""What is shown: a table in Markdown, a plot in SVG, and both put into docs/performance.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.figures import Row, Spread, rows
from benchmarks.harness.results import Results

#: Cores that others may use before a table says so.
QUIET = 0.1


def table(benchmark: Benchmark, results: Results) -> str:
    """Return a table with a line for each variant."""
    found = rows(results.rounds, benchmark.reference, benchmark.figure)
    more = list(dict.fromkeys(key for row in found for key in row.more if key != benchmark.figure))
    ratio = f"ratio to {benchmark.reference}"
    if benchmark.as_change:
        ratio = f"against {benchmark.reference}"
    head = ["variant", _title(benchmark), *([ratio] if benchmark.reference else [])]
    head += ["client CPU, µs each", "broker", "database", *more]
    lines = [head, ["---"] * len(head)]
    for row in found:
        ratios = [_ratio(row.ratio, benchmark)] if benchmark.reference else []
        figures = [f"{row.client:,.0f}", f"{row.broker:,.0f}", f"{row.database:,.0f}"]
        further = [f"{row.more[key]:.1f}" if key in row.more else "" for key in more]
        lines.append([row.name, spread(row.value, _form(benchmark)), *ratios, *figures, *further])
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", _note(benchmark, results, found)])


def _note(benchmark: Benchmark, results: Results, found: Sequence[Row]) -> str:
    rounds = len(results.rounds)
    note = f"Rounds: {rounds}, of {results.count:,} {benchmark.unit} each: median (smallest to largest)."
    disturbed = max((row.others for row in found), default=0)
    if disturbed > QUIET:
        note += f" **Disturbed**: other programs used up to {disturbed:.1f} cores."
    for name, reasons in results.failures.items():
        note += f" **Failed**, {len(reasons)} of {rounds} times: {name} ({reasons[-1]})."
    return note


def _title(benchmark: Benchmark) -> str:
    return benchmark.figure or f"{benchmark.unit} a second"


def _form(benchmark: Benchmark) -> str:
    return "{:,.1f}" if benchmark.figure else "{:,.0f}"


def _ratio(ratio: Spread | None, benchmark: Benchmark) -> str:
    if ratio is None:
        return ""
    return change(ratio) if benchmark.as_change else spread(ratio, "{:.2f}")


def spread(spread: Spread, form: str) -> str:
    """Return a median, with the smallest and largest value if these differ from it."""
    low, high = form.format(spread.low), form.format(spread.high)
    middle = form.format(spread.median)
    return middle if low == high else f"{middle} ({low} to {high})"


def change(ratio: Spread) -> str:
    """Return a ratio as what it adds or takes: 0.85 is -15 %."""
    return f"{spread(Spread(*((each - 1) * 100 for each in (ratio.median, ratio.low, ratio.high))), '{:+.0f}')} %"


def plot(benchmark: Benchmark, results: Results) -> str:
    """Return an SVG picture: a bar for each ratio, or value, with a line from the smallest to the largest."""
    left, width, step = 290, 400, 26
    found = rows(results.rounds, benchmark.reference, benchmark.figure)
    bars = {row.name: row.ratio if benchmark.reference else row.value for row in found}
    drawn = {name: bar for name, bar in bars.items() if bar}
    longest = max((bar.high for bar in drawn.values()), default=0) or 1.0

    def x(value: float) -> float:
        return left + width * value / longest

    parts = []
    for number, (name, bar) in enumerate(drawn.items()):
        y = step * number + 34
        parts += [
            f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{left}" y="{y}" width="{x(bar.median) - left:.1f}" height="16" fill="#c8102e"/>',
            f'<path d="M{x(bar.low):.1f} {y + 8}H{x(bar.high):.1f}" stroke="#333" stroke-width="2"/>',
            f'<text x="{x(bar.high) + 8:.1f}" y="{y + 12}">{bar.median:.2f}</text>',
        ]
    title = _title(benchmark) + (f", as a ratio to {benchmark.reference}" if benchmark.reference else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {step * len(drawn) + 44}"'
        ' font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<text x="{left}" y="20" font-weight="bold">{escape(title)}</text>\n' + "\n".join(parts) + "\n</svg>\n"
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
