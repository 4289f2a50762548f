"""What was measured, kept as JSON: `var/bench/NAME.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.harness.figures import Round
from benchmarks.harness.window import Measured


@dataclass(frozen=True)
class Results:
    """All rounds of one benchmark."""

    rounds: Sequence[Round]
    #: Messages, or what else is counted, of a variant with a whole share.
    count: int
    #: Day and time, UTC.
    measured_at: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    #: Why a variant failed, each time that it did.
    failures: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write them to `path`, every run of every round."""
        content: dict[str, Any] = {
            **vars(self),
            "rounds": [{name: run.as_json() for name, run in each.items()} for each in self.rounds],
        }
        path.write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises OSError if nothing was."""
        content = json.loads(path.read_text())
        rounds = [{name: _measured(run) for name, run in each.items()} for each in content.pop("rounds")]
        return cls(rounds, **content)


def _measured(run: dict[str, Any]) -> Measured:
    run.pop("rate")
    return Measured(**run)
