"""The selection of tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BROWSER_TESTS = ROOT / "tests" / "e2e"
FOREIGN_TESTS = ROOT / "tests" / "foreign"


@dataclass(frozen=True)
class Selection:
    """Paths of tests, and options meant for pytest."""

    paths: list[str]
    options: list[str]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> "Selection":
        """Treat existing paths (perhaps with `::test` behind them) as paths, and the rest as options of pytest."""
        paths = [argument for argument in arguments if _file(argument).exists()]
        return cls(paths, [argument for argument in arguments if argument not in paths])

    @property
    def is_everything(self) -> bool:
        """Whether neither path nor option was given."""
        return not self.paths and not self.options

    @property
    def without_browser(self) -> list[str] | None:
        """pytest's arguments for the tests that need no browser; None if none of these was asked for."""
        paths = [path for path in self.paths if not _file(path).is_relative_to(BROWSER_TESTS)]
        if self.paths and not paths:
            return None
        return [*paths, f"--ignore={BROWSER_TESTS}", *self.options]

    @property
    def has_foreign_clients(self) -> bool:
        """Whether tests with foreign clients may be among them."""
        files = [_file(path) for path in self.paths]
        return not files or any(
            file.is_relative_to(FOREIGN_TESTS) or FOREIGN_TESTS.is_relative_to(file) for file in files
        )

    @property
    def in_browser(self) -> list[str] | None:
        """pytest's arguments for the tests in a browser; None if none of these was asked for."""
        inside = [path for path in self.paths if _file(path).is_relative_to(BROWSER_TESTS)]
        if not self.paths or any(BROWSER_TESTS.is_relative_to(_file(path)) for path in self.paths):
            inside = [str(BROWSER_TESTS)]
        return [*inside, *self.options] if inside and BROWSER_TESTS.exists() else None


def _file(argument: str) -> Path:
    return Path(argument.partition("::")[0] or "\0").resolve() if not argument.startswith("-") else Path("/nowhere")
