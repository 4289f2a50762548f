"""The SMS gateway's process: an HTTP server on loopback that sends texts into its ledger, and misbehaves when told.

    POST /messages              {"to": "+86…", "text": "…"} with Authorization: Bearer …, Idempotency-Key: …
                                201 {"id": "…"}; 200 with the first id for a key it knows; 422 for that key with
                                another text; 400, 401, 413 for what makes no sense
    GET /messages?key=…         200 {"id": "…"} or 404; 405 where this gateway cannot be asked
    POST /control/misbehave     see `script.services.sms_gateway.SmsGateway`, which calls these three
    POST /control/misbehave-at-random
    POST /control/behave

It is started by `SmsGateway`, which leaves port, token and kind in the directory's state file.
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

from script.services.sms_gateway_faults import Fault, Misbehaviour, Plan
from script.services.sms_gateway_ledger import SmsLedger
from script.services.state import StateFile

#: Bytes of a request that are read; more is refused.
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
    """A thread for each connection; all share the ledger and the plan of misbehaviour."""

    daemon_threads = True
    # The default of 5 would refuse the clients of a busy minute.
    request_queue_size = 128

    def __init__(self, directory: Path) -> None:
        state = StateFile(directory / "gateway.json").read()
        self.token: str = state["token"]
        self.honours_keys: bool = state["honours_keys"]
        self.can_be_asked: bool = state["can_be_asked"]
        self.plan = Plan()
        self.ledger = SmsLedger(directory / "ledger.sqlite3")
        self.ledger.open()
        super().__init__(("127.0.0.1", state["port"]), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away: they are the point of most misbehaviours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: GatewayServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/control/"):
            self._control(path.removeprefix("/control/"))
        else:
            self._post(path)

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        key = parse_qs(address.query).get("key", [""])[0]
        how = self.server.plan.next("GET") if address.path == "/messages" else None
        number = self._note("GET", address.path, key=key, how=how)
        if how is not None and self._refuses(how, number):
            return
        if address.path != "/messages":
            self._answer(number, 404, error="there is nothing here")
        elif not self.server.can_be_asked:
            self._answer(number, 405, error="this gateway cannot be asked")
        elif not self._is_authorised():
            self._answer(number, 401, error="wrong token")
        else:
            sent = self.server.ledger.texts(key)
            if sent:
                self._answer(number, 200, id=sent[0].id)
            else:
                self._answer(number, 404, error="no message has this key")

    def log_message(self, format: str, *arguments: Any) -> None:
        """The ledger says more."""

    # --- to send a text ------------------------------------------------------------------------------------

    def _post(self, path: str) -> None:
        how = self.server.plan.next("POST") if path == "/messages" else None
        key = self.headers.get("Idempotency-Key", "")
        if how is not None and how.fault is Fault.CUT_BEFORE:
            self._note("POST", path, key=key, how=how)
            return self._cut()
        message = self._read_json()
        recipient, text = str(message.get("to", "")), str(message.get("text", ""))
        number = self._note("POST", path, key=key, recipient=recipient, text=text, how=how)
        if how is not None and self._refuses(how, number):
            return None
        if path != "/messages":
            return self._answer(number, 404, error="there is nothing here")
        if not self._is_authorised():
            return self._answer(number, 401, error="wrong token")
        if not (recipient.startswith("+") and recipient[1:].isdigit() and text):
            return self._answer(number, 400, error="to must be +digits, and text must say something")
        if how is not None and how.fault is Fault.SEND_LATE:
            time.sleep(how.seconds)
        return self._send(number, key, recipient, text, how)

    def _send(self, number: int, key: str, recipient: str, text: str, how: Misbehaviour | None) -> None:
        once = self.server.honours_keys
        sent, is_new = self.server.ledger.send(number, key=key, recipient=recipient, text=text, once_per_key=once)
        if not is_new and (sent.recipient, sent.text) != (recipient, text):
            return self._answer(number, 422, error="this key was used for another message")
        if how is not None and self._spoils(how, number, sent.id):
            return None
        return self._answer(number, 201 if is_new else 200, id=sent.id)

    def _is_authorised(self) -> bool:
        given = self.headers.get("Authorization", "")
        return secrets.compare_digest(given.encode(), f"Bearer {self.server.token}".encode())

    def _note(
        self, method: str, path: str, *, key: str, how: Misbehaviour | None, recipient: str = "", text: str = ""
    ) -> int:
        fault = how.fault.value if how else ""
        return self.server.ledger.note(method, path, key=key, recipient=recipient, text=text, fault=fault)

    # --- misbehaving ---------------------------------------------------------------------------------------

    def _refuses(self, how: Misbehaviour, number: int) -> bool:
        """Misbehave instead of doing what was asked; False where the fault comes only after that."""
        if how.fault is Fault.CUT_BEFORE:
            self._cut()
        elif how.fault is Fault.NEVER_ANSWER:
            self._wait_for_client_to_leave(how.seconds)
            self._cut()
        elif how.fault in REFUSALS:
            headers = {"Retry-After": f"{how.seconds:.0f}"} if how.fault is Fault.TOO_MANY else {}
            if how.fault is Fault.REDIRECT:
                headers["Location"] = "/elsewhere"
            self._answer(number, REFUSALS[how.fault], headers, error=how.fault.value)
        else:
            return False
        return True

    def _spoils(self, how: Misbehaviour, number: int, text_id: str) -> bool:
        """Misbehave after the text was sent; False where the answer is to be a good one, perhaps a late one."""
        match how.fault:
            case Fault.ANSWER_LATE:
                self._wait_for_client_to_leave(how.seconds)
                return False
            case Fault.SEND_AND_FAIL:
                self._answer(number, 500, error="something broke after your message was sent")
            case Fault.CUT_AFTER:
                self._cut()
            case Fault.GARBAGE:
                self._answer_body(number, 201, b"<html><h1>It works!</h1>\xff\xfe")
            case Fault.HALF_AN_ANSWER:
                body = json.dumps({"id": text_id}).encode()
                self._begin_answer(number, 201, len(body))
                self.wfile.write(body[: len(body) // 2])
                self._cut(politely=True)
            case Fault.SLOW_BODY:
                self._drip(number, json.dumps({"id": text_id}).encode(), how.seconds)
            case _:
                return False
        return True

    def _drip(self, number: int, body: bytes, seconds: float) -> None:
        self._begin_answer(number, 201, len(body))
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self._wait_for_client_to_leave(seconds / len(body)):
                return

    def _cut(self, *, politely: bool = False) -> None:
        """End the connection without an answer: as a crash does, with a reset, or with what was written sent."""
        self.close_connection = True
        if not politely:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR) if politely else self.connection.close()

    def _wait_for_client_to_leave(self, seconds: float) -> bool:
        """Wait that long, or until the client hangs up; whether it did."""
        readable, _, _ = select.select([self.connection], [], [], seconds)
        if not readable:
            return False
        with suppress(OSError):
            if self.connection.recv(1, socket.MSG_PEEK):
                return False
        self.close_connection = True
        return True

    # --- control -------------------------------------------------------------------------------------------

    def _control(self, command: str) -> None:
        asked = self._read_json()
        if not self._is_authorised():
            return self._answer(None, 401, error="wrong token")
        plan = self.server.plan
        try:
            match command:
                case "misbehave":
                    plan.misbehave(_misbehaviour(asked), times=asked.get("times"), method=asked.get("method", "POST"))
                case "misbehave-at-random":
                    choices = [_misbehaviour(choice) for choice in asked["choices"]]
                    plan.misbehave_at_random(choices, chance=float(asked["chance"]), seed=int(asked["seed"]))
                case "behave":
                    plan.behave()
                case _:
                    return self._answer(None, 404, error="there is no such command")
        except (KeyError, TypeError, ValueError) as error:
            return self._answer(None, 400, error=f"{type(error).__name__}: {error}")
        return self._answer(None, 200, done=command)

    # --- HTTP ----------------------------------------------------------------------------------------------

    def _read_json(self) -> dict[str, Any]:
        """The decoded body; empty where it is none that can be understood."""
        try:
            length = int(self.headers.get("Content-Length", "0"))
            if not 0 <= length <= LONGEST_BODY:
                raise ValueError(f"{length} bytes")
            content = json.loads(self.rfile.read(length) or b"{}")
        except ValueError:
            self.close_connection = True  # what was not read would be taken for the next request
            return {}
        return content if isinstance(content, dict) else {}

    def _answer(self, number: int | None, status: int, headers: dict[str, str] | None = None, **content: str) -> None:
        self._answer_body(number, status, json.dumps(content).encode(), headers)

    def _answer_body(self, number: int | None, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._begin_answer(number, status, len(body), headers)
        self.wfile.write(body)

    def _begin_answer(
        self, number: int | None, status: int, length: int, headers: dict[str, str] | None = None
    ) -> None:
        if number is not None:
            self.server.ledger.answered(number, status)
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()


def _misbehaviour(asked: dict[str, Any]) -> Misbehaviour:
    return Misbehaviour(Fault(asked["fault"]), float(asked.get("seconds", Misbehaviour.seconds)))


def main(directory: Path) -> None:
    """Serve until SIGTERM; whatever was answered is in the ledger."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    GatewayServer(directory).serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
