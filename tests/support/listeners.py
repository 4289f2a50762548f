"""Servers that listen on a port and are not a broker."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress


@contextmanager
def something_that_answers(answer: bytes | None) -> Iterator[int]:
    """A port that accepts; None never answers, bytes are sent at once and the connection closed."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                held.append(peer)
                if answer is not None:
                    with suppress(OSError):
                        peer.recv(8)
                        peer.sendall(answer)
                        peer.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for peer in held:
            peer.close()
        thread.join(5)
