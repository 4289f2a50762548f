"""Ports on loopback."""

import random
import socket
from pathlib import Path

#: Where ports that the kernel hands out by itself begin, if it does not say.
EPHEMERAL_START = 32768
LOWEST = 10_000


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nobody listens.

    It lies below the range from which the kernel serves outgoing connections. A client that keeps calling a
    stopped server inside that range can be given the very port it calls, and then talks to itself.
    """
    for _ in range(200):
        port = random.randrange(LOWEST, _ephemeral_start())  # noqa: S311 (not a secret)
        if is_free(port):
            return port
    raise OSError(f"No free port between {LOWEST} and {_ephemeral_start()} on 127.0.0.1.")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # As servers do: connections that are closing must not make the port look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def answers(port: int, timeout: float = 1.0) -> bool:
    """Whether somebody accepts connections on this port of 127.0.0.1 (within `timeout` seconds)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout):
            return True
    except OSError:
        return False


def _ephemeral_start() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return EPHEMERAL_START
