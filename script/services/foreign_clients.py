"""The foreign programs of the tests: Debian's amqp-tools, written in C; npm's amqplib for Node; nginx."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from script.services.owned import ServiceError

#: Holds package.json and its lock; what they name is installed beside them.
DIRECTORY = Path(__file__).resolve().parents[2] / "tests" / "foreign"
MODULES = DIRECTORY / "node_modules"
#: The hash of the lock whose packages are installed.
_STAMP = MODULES / ".installed"

AMQP_TOOLS = ("amqp-publish", "amqp-consume", "amqp-get", "amqp-declare-queue")


def have_amqp_tools() -> bool:
    """Whether the C client's programs are installed."""
    return all(map(shutil.which, AMQP_TOOLS))


def installed_nginx() -> str | None:
    """The path of nginx; Debian keeps it where only root looks."""
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))


def have_node() -> bool:
    """Whether Node and its package manager are installed."""
    return bool(shutil.which("node") and shutil.which("npm"))


def have_modules() -> bool:
    """Return whether exactly the packages of the lock are installed."""
    return _STAMP.exists() and _STAMP.read_text() == _lock_hash()


def install_modules() -> None:
    """Install what the lock names, by `npm ci`, unless it is there; no script of any package is run.

    Raises `ServiceError` where npm fails.
    """
    with (DIRECTORY / "package.json").open() as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)  # two runs of one checkout would install over each other
        if have_modules():
            return
        print("Installing from npm: what tests/foreign/package-lock.json names ...", flush=True)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        if subprocess.run(command, cwd=DIRECTORY, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            raise ServiceError(f"{' '.join(command)} failed in {DIRECTORY}; its output is above.")
        _STAMP.write_text(_lock_hash())


def _lock_hash() -> str:
    return hashlib.sha256((DIRECTORY / "package-lock.json").read_bytes()).hexdigest()
