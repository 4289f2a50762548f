"""A name service for processes that tests start: it looks names up in a file, which the test changes.

    run_process("run_relay", **failpoints.at(name_service.from_file), **name_service.looked_up_in(path))

Each line of the file is a name and its address. Only names that end in ".example" are looked up there.
"""

import os
import socket
from pathlib import Path
from typing import Any

VARIABLE = "WARREN_TEST_NAMES"


def looked_up_in(path: Path) -> dict[str, str]:
    """Return the environment that tells `from_file` its file."""
    return {VARIABLE: str(path)}


def from_file() -> None:
    """Let this process look names up in the file from now on."""
    path = Path(os.environ[VARIABLE])
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(host, str) and host.endswith(".example"):
            known = dict(line.split() for line in path.read_text().splitlines())
            if host not in known:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            host = known[host]
        return real(host, *arguments, **options)

    socket.getaddrinfo = look_up
