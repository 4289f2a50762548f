"""A name service for processes that tests start: names are looked up in a file, which the test writes meanwhile.

    run_process("run_relay", **failpoints.at(names.from_file), **names.looked_up_in(path))

Each line of the file is a name and its address. Only names that end in ".example" are looked up there.
"""

import os
import socket
from pathlib import Path
from typing import Any

VARIABLE = "WARREN_TEST_NAMES"


def looked_up_in(path: Path) -> dict[str, str]:
    """The environment that leads `from_file` to its file."""
    return {VARIABLE: str(path)}


def from_file() -> None:
    """Have this process look names up in the file from now on."""
    path = Path(os.environ[VARIABLE])
    really = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(host, str) and host.endswith(".example"):
            known = dict(line.split() for line in path.read_text().splitlines())
            if host not in known:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            host = known[host]
        return really(host, *arguments, **options)

    socket.getaddrinfo = look_up
