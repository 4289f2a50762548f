"""The arithmetic of script/bench, and what it writes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks import hops, page
from benchmarks.__main__ import NAMES
from benchmarks.harness import report
from benchmarks.harness import rounds as harness_rounds
from benchmarks.harness.benchmark import Benchmark, Variant
from benchmarks.harness.figures import Round, Spread, rows
from benchmarks.harness.results import Results
from benchmarks.harness.window import Measured, Window, require

BENCHMARK = Benchmark("How fast?", "messages", "C", 100, 10, ())


def rounds() -> list[Round]:
    """Three rounds, the second on a machine that was half as fast."""
    return [
        {"C": Measured(100, 1.0, 0.001), "ours": Measured(100, 2.0, 0.01, 0.02, 0.03, others=0.1)},
        {"C": Measured(100, 2.0, 0.001), "ours": Measured(100, 4.0, 0.02, 0.02, 0.03, others=0.2)},
        {"C": Measured(100, 1.0, 0.001), "ours": Measured(100, 1.0, 0.03, 0.02, 0.03, others=0.1)},
    ]


def test_a_row_has_medians_and_the_smallest_and_largest_value() -> None:
    _, ours = rows(rounds(), "C")

    assert ours.value == Spread(50, 25, 100)
    assert (ours.client, ours.broker, ours.database) == pytest.approx((200, 200, 300))
    assert ours.others == 0.1


def test_a_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    reference, ours = rows(rounds(), "C")

    # The ratio of the medians would be 50 / 100, too, but its smallest value 25 / 100.
    assert ours.ratio == Spread(0.5, 0.5, 1.0)
    assert reference.ratio == Spread(1, 1, 1)


def test_a_latency_is_compared_by_itself_and_its_rate_is_not_shown() -> None:
    one = {
        "C": Measured(100, 1.0, 0.1, more={"p50, ms": 2.0, "p99, ms": 9.0}),
        "ours": Measured(100, 1.0, 0.1, more={"p50, ms": 5.0, "p99, ms": 8.0}),
    }
    benchmark = Benchmark("How late?", "messages", "C", 100, 10, (), figure="p50, ms")

    table = report.table(benchmark, Results([one], 100))

    assert table.startswith("| variant | p50, ms | ratio to C | client CPU, µs each | broker | database | p99, ms |")
    assert "| ours | 5.0 | 2.50 | 1,000 | 0 | 0 | 8.0 |" in table


def test_a_variant_that_failed_in_one_round_has_the_figures_of_the_others() -> None:
    first, second, third = rounds()
    failing = [{"C": first["C"]}, second, third]

    reference, ours = rows(failing, "C")

    assert ours.value == Spread(62.5, 25, 100)
    assert reference.value == Spread(100, 50, 100)
    table = report.table(BENCHMARK, Results(failing, 100, failures={"ours": ["RuntimeError: 2 rows, not 3"]}))
    assert "**Failed**, 1 of 3 times: ours (RuntimeError: 2 rows, not 3)." in table


def test_without_its_reference_a_variant_has_no_ratio() -> None:
    (ours,) = rows([{"ours": Measured(100, 2.0, 0.01)}], "C")

    assert ours.ratio is None
    assert "| ours | 50 |  | 100 | 0 | 0 |" in report.table(BENCHMARK, Results([{"ours": Measured(100, 2, 0.01)}], 100))


def test_a_benchmark_without_a_reference_has_no_ratios() -> None:
    table = report.table(replace(BENCHMARK, reference=""), Results(rounds(), 100))

    assert table.startswith("| variant | messages a second | client CPU, µs each | broker | database |")
    assert "| C | 100 (50 to 100) | 10 | 0 | 0 |" in table


def test_what_an_event_costs_an_order_is_told_as_a_change() -> None:
    table = report.table(replace(BENCHMARK, as_change=True), Results(rounds(), 100))

    assert "| ours | 50 (25 to 100) | -50 (-50 to +0) % | 200 | 200 | 300 |" in table


def test_slower_variants_may_have_fewer_messages() -> None:
    one = {"C": Measured(100, 1.0, 0.1), "slow": Measured(10, 1.0, 0.1)}

    _, slow = rows([one], "C")

    assert (slow.value.median, slow.ratio.median, slow.client) == pytest.approx((10, 0.1, 10_000))


def test_the_table_names_each_variant_and_says_if_others_disturbed_it() -> None:
    table = report.table(BENCHMARK, Results(rounds(), 100))

    assert "| ours | 50 (25 to 100) | 0.50 (0.50 to 1.00) | 200 | 200 | 300 |" in table
    assert "Disturbed" not in table
    disturbed = [{**each, "ours": Measured(100, 1.0, 0.01, others=0.4)} for each in rounds()]
    assert "**Disturbed**: other programs used up to 0.4 cores." in report.table(BENCHMARK, Results(disturbed, 100))


def test_a_page_gets_the_table_between_its_marks_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- bench relay -->\nold\n<!-- end relay -->\nafter\n")

    report.update(page, "relay", r"| new \1 |")

    assert page.read_text() == "before\n<!-- bench relay -->\n| new \\1 |\n<!-- end relay -->\nafter\n"
    with pytest.raises(ValueError, match="no place for consumer"):
        report.update(page, "consumer", "")


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = Results(rounds(), 100, "2026-01-01 12:00 UTC", {"Warren": "abc"}, {"slow": ["it did nothing"]})

    results.save(tmp_path / "relay.json")

    assert Results.load(tmp_path / "relay.json") == results


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_has_a_reference_and_a_place_in_the_documentation(name: str, tmp_path: Path) -> None:
    benchmark = page.benchmark(name)
    names = [variant.name for variant in benchmark.variants]
    copy = tmp_path / "performance.md"
    copy.write_text(page.PAGE.read_text())

    assert benchmark.reference in [*names, ""]
    assert len(set(names)) == len(names)
    report.update(copy, name, "")


@pytest.mark.parametrize("hop", hops.HOPS, ids=lambda hop: hop.title)
def test_each_hop_compares_variants_that_its_benchmark_has(hop: hops.Hop) -> None:
    benchmark = page.benchmark(hop.benchmark)
    names = [variant.name for variant in benchmark.variants]

    for name in (hop.variant, *hop.peers, *hop.limits):
        # One run may measure several things, of which it names each.
        assert any(name == each or name.endswith(f", {each}") for each in names)


def test_the_table_of_hops_has_ratios_to_peers_and_limits_or_says_that_nothing_was_measured() -> None:
    one = {
        "C": Measured(1000, 1.0, 0.001),
        "Warren, PostgreSQL": Measured(1000, 2.0, 0.06),
        "Celery, confirmed": Measured(100, 1.0, 0.05),
    }

    table = hops.table({"relay": Results([one], 1000)}).splitlines()

    line = "| Relay, PostgreSQL | 500 messages a second, 60 µs of CPU each | 5.00 × Celery, confirmed | 0.50 of C |"
    assert f"{line} 500 to 500, 1 rounds |" in table
    assert "| Relay, SQLite | not measured |  |  |  |" in table


def test_the_page_gets_the_newest_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "docs/performance.md"
    (tmp_path / "docs/images").mkdir(parents=True)
    copy.write_text(page.PAGE.read_text())
    monkeypatch.setattr(page, "PAGE", copy)
    run = {"C": Measured(1000, 1.0, 0.001), "Warren, SQLite": Measured(1000, 4.0, 0.06)}
    Results([run], 1000, "2026-01-01 12:00 UTC", {"Warren": "abc", "Python": "3"}).save(tmp_path / "relay.json")

    page.write(NAMES, tmp_path)

    text = copy.read_text()
    assert "Warren abc, Python 3." in text
    assert "| Warren, SQLite | 250 | 0.25 | 60 | 0 | 0 |" in text
    assert "Measured 2026-01-01 12:00 UTC." in text
    assert "| Relay, SQLite | 250 messages a second, 60 µs of CPU each |  | 0.25 of C |" in text
    assert (tmp_path / "docs/images/bench-relay.svg").read_text().startswith("<svg")


def test_a_variant_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run.log"

    def run(servers: Any, name: str, benchmark: Benchmark, variant: Variant, log: Path) -> dict[str, Measured]:
        if variant.name == "broken":
            log.write_text("Traceback\nRuntimeError: 2 rows, not 3: nothing was measured\n\n")
            raise subprocess.CalledProcessError(1, [sys.executable])
        return {variant.name: Measured(100, 1.0, 0.1)}

    class Servers:
        mended = 0

        def mend(self) -> None:
            self.mended += 1

        def versions(self) -> dict[str, str]:
            return {"Warren": "abc"}

    monkeypatch.setattr(harness_rounds, "_run", run)
    benchmark = replace(BENCHMARK, variants=tuple(Variant(name, cast(Any, None)) for name in ("C", "broken", "ours")))

    servers = Servers()
    results = harness_rounds.measure(cast(Any, servers), "relay", benchmark, 2, log)

    assert [list(each) for each in results.rounds] == [["C", "ours"], ["C", "ours"]]
    assert results.failures == {"broken": ["RuntimeError: 2 rows, not 3: nothing was measured"] * 2}
    assert servers.mended == 2
    assert "relay 1: broken: FAILED" in capsys.readouterr().err


def test_a_window_measures_the_time_and_the_processor_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_BROKER", str(tmp_path))
    monkeypatch.setenv("BENCH_POSTGRESQL", str(tmp_path))
    window = Window()
    window.start()
    sum(range(5_000_000))
    window.stop()

    measured = window.measured(10)

    assert 0 < measured.client <= measured.seconds * 1.5
    assert measured.broker == measured.database == 0
    assert measured.rate == pytest.approx(10 / measured.seconds)


def test_work_that_was_not_done_gives_no_figure() -> None:
    require(3, 3, "rows")
    with pytest.raises(RuntimeError, match="2 rows, not 3"):
        require(3, 2, "rows")
