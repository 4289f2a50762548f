"""The arithmetic of script/bench, and what it writes."""

import importlib
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES, PAGE
from benchmarks.harness import report
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.figures import Spread, rows
from benchmarks.harness.window import Measured, Window, require

BENCHMARK = Benchmark("How fast?", "messages", "C", 100, 10, ())


def rounds() -> list[dict[str, Measured]]:
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

    table = report.table(benchmark, rows([one], "C", "p50, ms"), 1)

    assert table.startswith("| variant | p50, ms | ratio to C | client CPU, µs each | broker | database | p99, ms |")
    assert "| ours | 5.0 | 2.50 | 1,000 | 0 | 0 | 8.0 |" in table


def test_slower_variants_may_have_fewer_messages() -> None:
    one = {"C": Measured(100, 1.0, 0.1), "slow": Measured(10, 1.0, 0.1)}

    _, slow = rows([one], "C")

    assert (slow.value.median, slow.ratio.median, slow.client) == pytest.approx((10, 0.1, 10_000))


def test_the_table_names_each_variant_and_says_if_others_disturbed_it() -> None:
    table = report.table(BENCHMARK, rows(rounds(), "C"), 3)

    assert "| ours | 50 (25 to 100) | 0.50 (0.50 to 1.00) | 200 | 200 | 300 |" in table
    assert "Disturbed" not in table
    disturbed = [{**each, "ours": Measured(100, 1.0, 0.01, others=0.4)} for each in rounds()]
    assert "**Disturbed**: other programs used up to 0.4 cores." in report.table(BENCHMARK, rows(disturbed, "C"), 3)


def test_a_page_gets_the_table_between_its_marks_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- bench relay -->\nold\n<!-- end relay -->\nafter\n")

    report.update(page, "relay", r"| new \1 |")

    assert page.read_text() == "before\n<!-- bench relay -->\n| new \\1 |\n<!-- end relay -->\nafter\n"
    with pytest.raises(ValueError, match="no place for consumer"):
        report.update(page, "consumer", "")


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_has_a_reference_and_a_place_in_the_documentation(name: str, tmp_path: Path) -> None:
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    names = [variant.name for variant in benchmark.variants]
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())

    assert benchmark.reference in names
    assert len(set(names)) == len(names)
    report.update(page, name, "")


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
