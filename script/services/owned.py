"""Processes that belong to a directory, found again by pid, and never confused with other processes.

A pid in a file proves nothing: after a reboot, or in a copied directory, the number belongs to another process. So
every process is started with its directory's name in its environment, and only processes with that name are signalled.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Environment variable that names the directory a process belongs to.
OWNER = "WARREN_SERVICE_DIRECTORY"
#: Seconds between two checks of something that is starting or stopping.
POLL_INTERVAL = 0.05


class ServiceError(Exception):
    """A service could not be started, stopped or used. The text says what happened and where to look.

    `exit_code` is for programs that need the service.
    """

    def __init__(self, reason: str, exit_code: int = 3) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


def start_owned(
    command: Sequence[str | Path],
    directory: Path,
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    home: Path | None = None,
    parent_death_signal: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a process that belongs to `directory`, in `home` and as `user` if given; it prints to the end of `log`.

    It runs in its own session: Ctrl-C in the terminal does not reach it. If its parent dies without stopping it, it is
    sent `parent_death_signal`.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            # Changing the user forgets the guard, so it comes second.
            [*(_as_user(user) if user else []), *parent_death_guard(parent_death_signal), *map(str, command)],
            cwd=home,
            env={**(os.environ if environment is None else environment), OWNER: str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def parent_death_guard(number: signal.Signals) -> list[str]:
    """Return the prefix of a command that is to be signalled when the thread that starts it dies, even by kill -9.

    Empty on a system without setpriv: there, a killed program leaves processes behind.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, f"--pdeathsig={number.name.removeprefix('SIG')}", "--"] if setpriv else []


def _as_user(user: str) -> list[str]:
    if shutil.which("setpriv") is None:
        raise ServiceError("setpriv is missing: it comes with util-linux, and is needed to leave root.")
    return ["setpriv", f"--reuid={user}", f"--regid={user_group(user)}", "--init-groups", "--"]


def user_group(user: str) -> str:
    """The name of a user's own group."""
    import grp
    import pwd

    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


def belongs(pid: int, directory: Path) -> bool:
    """Whether `pid` is a living process that was started for `directory` (a zombie does not live)."""
    for _ in range(100):
        environment = _environment(pid)
        if environment or not _is_alive(pid):
            break
        # For an instant, while a process becomes another program, its environment reads as empty.
        time.sleep(0.002)
    return f"{OWNER}={directory}".encode() in environment


def owned_pids(directory: Path) -> list[int]:
    """Return all living processes that were started for `directory`, and their children, which inherit its mark."""
    mark = f"{OWNER}={directory}".encode()
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if mark in _environment(pid)]


def _environment(pid: int) -> list[bytes]:
    """Return the environment, read from any thread: once the first thread has ended, only the others have one."""
    for of in (str(pid), *_threads(pid)):
        try:
            content = Path(f"/proc/{of}/environ").read_bytes()
        except OSError:
            continue
        if content:
            return content.split(b"\0")[:-1]
    return []


def is_paused(pid: int) -> bool:
    """Whether a process is frozen by SIGSTOP, all its threads: they stop one after the other."""
    return {_run_state(thread) for thread in _threads(pid)} == {"T"}


def _is_alive(pid: int) -> bool:
    """Whether any thread lives. A killed process is a zombie as soon as its first thread has ended; until the last one
    has, it still holds its files and ports."""
    return any(_run_state(thread) not in {"", "Z", "X"} for thread in _threads(pid))


def _threads(pid: int) -> list[str]:
    """Return the threads of a process, as paths below /proc."""
    try:
        return [f"{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _run_state(of: str) -> str:
    """The letter by which the kernel tells what a process, or one of its threads, does; empty if there is none."""
    try:
        return Path(f"/proc/{of}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def end(pid: int, directory: Path, *, how: signal.Signals = signal.SIGTERM, patience: float = 30) -> None:
    """Signal a process of `directory` and wait until it is gone; after `patience` seconds it is killed."""
    if not signal_owned(pid, directory, how):
        return
    if not gone_within(pid, directory, patience):
        signal_owned(pid, directory, signal.SIGKILL)
        gone_within(pid, directory, 10)


def end_all(directory: Path, *, how: signal.Signals) -> None:
    """Signal every process of `directory` but this one, and wait until they are gone (killed after 30 s)."""
    for pid in owned_pids(directory):
        if pid != os.getpid():
            end(pid, directory, how=how)


def signal_owned(pid: int, directory: Path, how: signal.Signals) -> bool:
    """Send a signal to a process if it belongs to `directory`; whether it did."""
    if not belongs(pid, directory):
        return False
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return False
    return True


def gone_within(pid: int, directory: Path, seconds: float) -> bool:
    """Wait until a process of `directory` has ended; False if it still lives after `seconds`."""
    deadline = time.monotonic() + seconds
    while belongs(pid, directory):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented, to be shown under an error."""
    try:
        content = log.read_text(errors="replace").splitlines()
    except OSError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in content[-lines:])
