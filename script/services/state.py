"""What must be known again later about a service, in a private file beside its data."""

import json
from pathlib import Path
from typing import Any


class StateFile:
    """A small dictionary on disk, readable by its owner only. Every read sees a whole version of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """The saved values; empty if there are none, or if what is there is not readable as such."""
        try:
            values = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def save(self, **changes: Any) -> None:
        """Replace some values and keep the others."""
        values = {**self.read(), **changes}
        unfinished = self.path.with_suffix(".new")
        write_private(unfinished, json.dumps(values))
        unfinished.rename(self.path)


def write_private(path: Path, content: str, mode: int = 0o600) -> None:
    """Write a file that others never could read, not even for an instant."""
    path.touch(mode=0o600)
    path.write_text(content)
    path.chmod(mode)
