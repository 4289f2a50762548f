"""The results of the parts of a run."""

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

#: pytest's exit code when nothing was left to run, as when all tests of a path need no second database.
NO_TESTS = 5


@dataclass
class Tally:
    """How many parts and tests passed and failed, and notes for people."""

    in_ci: bool
    #: Whether all tests run: then each part must have some.
    everything: bool = False
    passed: int = 0
    failed: int = 0
    notes: list[str] = field(default_factory=list)

    def missing(self, what: str) -> None:
        """Note that something is missing that tests need. In continuous integration that is a failure."""
        self.failed += self.in_ci
        self.notes.append(what)

    def check(self, name: str, exit_code: int) -> None:
        """Count a check that passes as a whole or not."""
        self.passed += exit_code == 0
        self.failed += exit_code != 0
        if exit_code != 0:
            self.notes.append(f"Failed: {name}")

    def tests(self, name: str, exit_code: int, report: Path) -> None:
        """Count the tests in pytest's JUnit report; a run that ended badly without a failed test counts as one."""
        passed, failed, skipped = _counts(report)
        if skipped and self.in_ci:
            failed += skipped
        nothing_to_run = exit_code == NO_TESTS and not self.everything
        if exit_code != 0 and not nothing_to_run and not failed:
            failed = 1
        self.passed += passed
        self.failed += failed
        if failed or skipped:
            self.notes.append(f"{name}: {failed} failed, {skipped} skipped (exit code {exit_code})")


def _counts(report: Path) -> tuple[int, int, int]:
    if not report.exists():
        return 0, 0, 0
    suites = list(ElementTree.parse(report).iter("testsuite"))  # noqa: S314 (pytest has just written it)
    total, skipped, *failures = (
        sum(int(suite.get(name, "0")) for suite in suites) for name in ("tests", "skipped", "failures", "errors")
    )
    failed = sum(failures)
    return max(total - skipped - failed, 0), failed, skipped
