"""Ports on loopback."""

import random
import socket
import time
from pathlib import Path

#: Where ports that the kernel hands out by itself begin, if it does not say.
EPHEMERAL_START = 32768
LOWEST = 10_000

#: Every port that this process was given, held until it ends.
_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which no server listens; it is given only once while this process lives.

    A server may listen only seconds after its port was chosen, and does not while it is down: a port that is merely
    free could be given to two servers. The port lies below the range that the kernel uses for outgoing connections.
    Inside that range, a client that keeps calling a stopped server may get that very port, and then talks to itself.
    """
    for _ in range(200):
        port = random.randrange(LOWEST, _ephemeral_start())  # noqa: S311 (not a secret)
        if is_free(port) and _reserve(port):
            return port
    raise OSError(f"No free port between {LOWEST} and {_ephemeral_start()} on 127.0.0.1.")


def _reserve(port: int) -> bool:
    """Take the UDP port of that number, which none of our servers uses. Other processes see that it is taken, the TCP
    port stays free, and the kernel releases it however this process ends."""
    reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        reservation.bind(("127.0.0.1", port))
    except OSError:
        reservation.close()
        return False
    _reserved.append(reservation)
    return True


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


def free_again(*ports: int, patience: float = 5.0) -> bool:
    """Wait up to `patience` seconds until servers could listen on all of these ports; return whether they could.

    A killed server holds its port for some milliseconds, longer on a busy machine. Its clients know its address, so it
    should get the same port again.
    """
    deadline = time.monotonic() + patience
    while not all(is_free(port) for port in ports):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def answers(port: int, timeout: float = 1.0) -> bool:
    """Return whether a server accepts connections on this port of 127.0.0.1 within `timeout` seconds."""
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
