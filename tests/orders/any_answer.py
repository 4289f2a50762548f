"""A gateway that answers anything that a test wants, over real sockets."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from orders.sms_gateway import SmsGateway

PHONE = "+8613800138000"
TEXT = "your order W-234567, 宝"
Serve = Callable[[socket.socket], None]


@contextmanager
def answering(answer: bytes | Serve) -> Iterator[str]:
    """Serve `answer`, whatever is asked, on an address of its own."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                line, _ = listener.accept()
                with line, suppress(OSError):
                    if callable(answer):
                        answer(line)
                    else:
                        read_request(line)
                        line.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/messages"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def read_request(line: socket.socket) -> bytes:
    line.settimeout(5)
    read = b""
    while b"\r\n\r\n" not in read:
        read += line.recv(65536)
    return read


def http(status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def result_of(answer: bytes | Serve, *, honours_keys: bool = True, timeout: float = 5) -> Any:
    """Return what `send` returns, or the exception it raises."""
    with answering(answer) as url:
        gateway = SmsGateway(url=url, token="t0ken", honours_keys=honours_keys)
        try:
            return gateway.send(PHONE, TEXT, key="key", timeout=timeout)
        except Exception as error:
            return error
