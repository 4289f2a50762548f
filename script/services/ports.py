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
    """A TCP port of 127.0.0.1 on which nobody listens, and that nobody else is given while this process lives.

    A server listens seconds after its port was chosen, and not at all while it is down: until then a port that is
    merely free could be given to two. It lies below the range from which the kernel serves outgoing connections. A
    client that keeps calling a stopped server inside that range can be given the very port it calls, and then talks
    to itself.
    """
    for _ in range(200):
        port = random.randrange(LOWEST, _ephemeral_start())  # noqa: S311 (not a secret)
        if is_free(port) and _reserve(port):
            return port
    raise OSError(f"No free port between {LOWEST} and {_ephemeral_start()} on 127.0.0.1.")


def _reserve(port: int) -> bool:
    """Take the UDP port of that number, which none of our servers uses: other processes see that it is taken, the TCP
    port stays free, and the kernel gives it back however this process ends."""
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

    A server that was just killed holds its port for some milliseconds, longer on a busy machine. Its clients know its
    address: started again, it should have the same port.
    """
    deadline = time.monotonic() + patience
    while not all(is_free(port) for port in ports):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
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
