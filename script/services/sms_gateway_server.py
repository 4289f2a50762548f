"""The SMS gateway's process: an HTTP server on loopback that sends texts into its ledger, and misbehaves as told there.

    POST /messages              {"to": "+86…", "text": "…"} with Authorization: Bearer …, Idempotency-Key: …
                                201 {"id": "…"}; 200 with the first id for a key it knows; 422 for that key with
                                another text; 400, 401 for a request that makes no sense
    GET /messages?key=…         200 {"id": "…"} or 404; 405 if this gateway cannot be asked

`SmsGateway` starts it, and leaves port, token and kind in the directory's state file.
"""

import json
import secrets
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from script.services.service import StateFile
from script.services.sms_gateway_ledger import Fault, SmsLedger

#: Bytes of a request that are read; a longer one is refused.
LONGEST_BODY = 64 * 1024
#: Faults that answer instead of sending, and their status.
REFUSALS = {
    Fault.SERVER_ERROR: 500,
    Fault.UNAVAILABLE: 503,
    Fault.TOO_MANY: 429,
    Fault.BAD_REQUEST: 400,
    Fault.REFUSED: 422,
    Fault.UNAUTHORISED: 401,
    Fault.REDIRECT: 302,
}


class GatewayServer(ThreadingHTTPServer):
    """A thread for each connection; all share the ledger."""

    daemon_threads = True
    # The default of 5 would refuse the clients of a busy minute.
    request_queue_size = 128

    def __init__(self, directory: Path) -> None:
        state = StateFile(directory / "gateway.json").read()
        self.token: str = state["token"]
        self.honours_keys: bool = state["honours_keys"]
        self.can_be_asked: bool = state["can_be_asked"]
        self.ledger = SmsLedger(directory / "ledger.sqlite3")
        super().__init__(("127.0.0.1", state["port"]), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that went away: most misbehaviours make them do so."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: GatewayServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    #: Of the request that is served: its number in the ledger, and the fault that it meets.
    number: int
    fault: Fault | None
    seconds: float

    def do_GET(self) -> None:
        key = parse_qs(urlsplit(self.path).query).get("key", [""])[0]
        if not self._begin("GET", key):
            return
        if not self.server.can_be_asked:
            self._answer(405, error="this gateway cannot be asked")
        elif sent := self.server.ledger.texts(key):
            self._answer(200, id=sent[0].id)
        else:
            self._answer(404, error="no message has this key")

    def do_POST(self) -> None:
        key = self.headers.get("Idempotency-Key", "")
        if not self._begin("POST", key):
            return
        recipient, text = self.recipient, self.text
        if not (recipient.startswith("+") and recipient[1:].isdigit() and text):
            self._answer(400, error="to must be +digits, and text must say something")
            return
        if self.fault is Fault.SEND_LATE:
            time.sleep(self.seconds)
        once = self.server.honours_keys
        sent, is_new = self.server.ledger.send(self.number, key=key, recipient=recipient, text=text, once_per_key=once)
        if not is_new and (sent.recipient, sent.text) != (recipient, text):
            self._answer(422, error="this key was used for another message")
        elif not self._spoils(sent.id):
            self._answer(201 if is_new else 200, id=sent.id)

    def _begin(self, method: str, key: str) -> bool:
        """Record the request and read its body; return False if it is over already, by a fault or by its own fault."""
        path = urlsplit(self.path).path
        self.number, self.fault, self.seconds = self.server.ledger.note(method, path, key=key)
        if self.fault is Fault.CUT_BEFORE:
            self._cut()
            return False
        message = self._read_json()
        self.recipient, self.text = str(message.get("to", "")), str(message.get("text", ""))
        self.server.ledger.content(self.number, self.recipient, self.text)
        authorisation = self.headers.get("Authorization", "").encode()
        if self.fault is Fault.NEVER_ANSWER:
            self._wait_for_client_to_leave(self.seconds)
            self._cut()
        elif self.fault in REFUSALS:
            extra = {Fault.TOO_MANY: {"Retry-After": f"{self.seconds:.0f}"}, Fault.REDIRECT: {"Location": "/elsewhere"}}
            self._answer(REFUSALS[self.fault], extra.get(self.fault), error=self.fault)
        elif path != "/messages":
            self._answer(404, error="there is nothing here")
        elif not secrets.compare_digest(authorisation, f"Bearer {self.server.token}".encode()):
            self._answer(401, error="wrong token")
        else:
            return True
        return False

    def log_message(self, format: str, *arguments: Any) -> None:
        """The ledger says more."""

    # --- misbehaving ---------------------------------------------------------------------------------------

    def _spoils(self, text_id: str) -> bool:
        """Misbehave after the text was sent; return False if the answer is to be a good one, perhaps a late one."""
        body = json.dumps({"id": text_id}).encode()
        match self.fault:
            case Fault.ANSWER_LATE:
                self._wait_for_client_to_leave(self.seconds)
                return False
            case Fault.SEND_AND_FAIL:
                self._answer(500, error="something broke after your message was sent")
            case Fault.CUT_AFTER:
                self._cut()
            case Fault.GARBAGE:
                garbage = b"<html><h1>It works!</h1>\xff\xfe"
                self._begin_answer(201, len(garbage))
                self.wfile.write(garbage)
            case Fault.HALF_AN_ANSWER:
                self._begin_answer(201, len(body))
                self.wfile.write(body[: len(body) // 2])
                self._cut(politely=True)
            case Fault.SLOW_BODY:
                self._begin_answer(201, len(body))
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    if self._wait_for_client_to_leave(self.seconds / len(body)):
                        break
            case _:
                return False
        return True

    def _cut(self, *, politely: bool = False) -> None:
        """End the connection without an answer: with a reset, as a crash does, or after what was written."""
        self.close_connection = True
        if not politely:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR) if politely else self.connection.close()

    def _wait_for_client_to_leave(self, seconds: float) -> bool:
        """Wait that long, or until the client hangs up; return whether it did."""
        readable, _, _ = select.select([self.connection], [], [], seconds)
        if not readable:
            return False
        with suppress(OSError):
            if self.connection.recv(1, socket.MSG_PEEK):
                return False
        self.close_connection = True
        return True

    # --- HTTP ----------------------------------------------------------------------------------------------

    def _read_json(self) -> dict[str, Any]:
        """Return the decoded body; empty if it cannot be understood."""
        try:
            length = int(self.headers.get("Content-Length", "0"))
            if not 0 <= length <= LONGEST_BODY:
                raise ValueError(f"{length} bytes")
            content = json.loads(self.rfile.read(length) or b"{}")
        except ValueError:
            self.close_connection = True  # the unread rest would be taken for the next request
            return {}
        return content if isinstance(content, dict) else {}

    def _answer(self, status: int, headers: dict[str, str] | None = None, **content: str) -> None:
        body = json.dumps(content).encode()
        self._begin_answer(status, len(body), headers)
        self.wfile.write(body)

    def _begin_answer(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.server.ledger.answered(self.number, status)
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()


def main(directory: Path) -> None:
    """Serve until SIGTERM; everything that was answered is in the ledger."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    GatewayServer(directory).serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
