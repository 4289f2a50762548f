"""Debian packages: installed if possible; otherwise the error says what to type."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from script.services.owned import ServiceError

POLICY = Path("/usr/sbin/policy-rc.d")
#: Characters of apt-get's lines that a terminal shows.
PROGRESS_WIDTH = 78
#: What invoke-rc.d and systemd's helper ask before they start a service; 101 forbids it.
NOTHING_STARTS = "#!/bin/sh\nexit 101\n"


def may_install() -> bool:
    """Whether Debian packages can be installed: by root, with apt-get."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(*packages: str) -> None:
    """Install Debian packages and say so; no service of the system is started by it.

    Raises `ServiceError`, with what to type, if that is not possible.
    """
    command = f"apt-get install {' '.join(packages)}"
    if not may_install():
        raise ServiceError(f"Missing: {', '.join(packages)}. On Debian and Ubuntu, as root: {command}")
    print(f"Installing from Debian: {', '.join(packages)} (none of it is started) ...", flush=True)
    with services_stay_down():
        _apt_get("update", "-q")
        _apt_get("install", "-qy", "--no-install-recommends", *packages)


@contextmanager
def services_stay_down() -> Iterator[None]:
    """Inside, installing a package starts no service. The machine's own policy is put back afterwards."""
    own_policy = POLICY.read_bytes() if POLICY.exists() else None
    mode = POLICY.stat().st_mode if own_policy is not None else 0
    POLICY.write_text(NOTHING_STARTS)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        if own_policy is None:
            POLICY.unlink()
        else:
            POLICY.write_bytes(own_policy)
            POLICY.chmod(mode)


def _apt_get(*arguments: str) -> None:
    said = []
    with subprocess.Popen(
        ["apt-get", "-o", "DPkg::Lock::Timeout=120", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            said.append(line)
            _show_progress(line.strip())
    _show_progress("")
    if process.returncode:
        print("".join(said), file=sys.stderr)
        raise ServiceError(f"apt-get {' '.join(arguments)} failed with {process.returncode}; its output is above.")


def _show_progress(line: str) -> None:
    """Show what apt-get does, on one line of a terminal."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line[:PROGRESS_WIDTH]}", end="", flush=True)
