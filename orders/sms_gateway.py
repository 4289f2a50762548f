"""An SMS gateway that is spoken to over HTTP: one text a request, and what is known of it afterwards.

What counts is whether the text was sent. A text is surely not sent while no connection stands, and where the gateway
says so; it is sent where the gateway names it. Everything else is doubtful. Which answer means what is written down
in docs/configuration.md.

Each text has a connection of its own: one that is kept open may be closed by the gateway just as the next request is
written to it, and then nobody knows whether that one was read.
"""

from __future__ import annotations

import errno
import io
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

from messaging.exceptions import NotDone, Reject, RetryLater

#: Share of the time that connecting may take, so that what was not begun is known while there is time to say so.
CONNECTING = 0.5
#: Bytes of an answer that are read.
LONGEST_ANSWER = 64 * 1024
#: Interim answers (1xx) that may come before the final one.
MOST_INTERIM_ANSWERS = 20
#: Longest rest that a gateway can ask for.
LONGEST_REST = timedelta(hours=1)

#: 4xx that a person can mend at the gateway or in the settings, and that no text is to blame for: wrong token, no
#: credit, wrong path; and those that only mean "later". Nothing was sent.
_MENDABLE = {401, 402, 403, 404, 405, 407, 408, 410, 421, 423, 425, 429}
#: "It is elsewhere; send it there." 302 and 303 may also mean that it was done, and its result is elsewhere.
_MOVED = {301, 307, 308}

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OUR_HEADERS = {"authorization", "host", "connection", "content-type", "content-length", "transfer-encoding"}


class MaybeSent(Exception):
    """The text may have been sent or not: there was no answer, or none that says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmsGateway:
    """Where texts are posted to, as `{"to": …, "text": …}`, and with what.

    `ask_url`, if there is one, tells of a key whether it was sent; "{key}" in it stands for the key. Both answer
    with a JSON object that has an `id`.
    """

    url: str
    token: str
    key_header: str = "Idempotency-Key"
    honours_keys: bool = False
    ask_url: str = ""

    def send(self, to: str, text: str, *, key: str, timeout: float) -> str:
        """Send a text and return the gateway's id of it. Begins to send within `timeout` seconds, or not at all.

        Raises NotDone, RetryLater and Reject where it surely was not sent, MaybeSent where nobody knows.
        """
        body = json.dumps({"to": to, "text": text}).encode()
        answer = self._exchange("POST", self.url, key, timeout, body)
        if 200 <= answer.status < 300:
            return _id_in(answer)
        raise self._why_not(answer)

    def ask(self, key: str, *, timeout: float) -> str | None:
        """Return the gateway's id of the text with this key, or None where it says that it knows of none.

        Raises what `send` raises where it does not say.
        """
        address = self.ask_url.replace("{key}", quote(_header_safe(key), safe=""))
        answer = self._exchange("GET", address, key, timeout)
        if 200 <= answer.status < 300:
            return _id_in(answer)
        # A page that a web server has for any wrong address says nothing about texts.
        if answer.status == 404 and answer.content is not None:
            return None
        raise MaybeSent(f"asked whether it was sent, the gateway answered {answer.status}")

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (which, what) is wrong with the settings, `which` being url, token, key_header or ask_url."""
        if problem := _problem_with(self.url):
            yield "url", problem
        if not self.token:
            yield "token", "is missing"
        elif not re.fullmatch(r"[\x21-\x7e]+", self.token):
            yield "token", "has characters that an HTTP header cannot carry"
        if not _HEADER_NAME.fullmatch(self.key_header) or self.key_header.lower() in _OUR_HEADERS:
            yield "key_header", f"is {self.key_header!r}, which cannot be used as the name of that header"
        if self.ask_url:
            if problem := _problem_with(self.ask_url.replace("{key}", "key")):
                yield "ask_url", problem
            if "{key}" not in self.ask_url:
                yield "ask_url", "does not say {key} where the key belongs"

    def _exchange(self, method: str, url: str, key: str, timeout: float, body: bytes | None = None) -> _Answer:
        deadline = time.monotonic() + timeout
        for which, what in self.problems():
            raise NotDone(f"SMS_GATEWAY_{which.upper()} {what}")
        address = urlsplit(url)
        connection = _connected(address.scheme, address.hostname or "", address.port, timeout * CONNECTING)
        try:
            if time.monotonic() >= deadline:
                # The process stood still meanwhile. Others may take the text for abandoned by now.
                raise NotDone("there was no time left to send it")
            headers = {
                "Authorization": f"Bearer {self.token}",
                self.key_header: _header_safe(key),
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Connection": "close",
            }
            target = (address.path or "/") + (f"?{address.query}" if address.query else "")
            return _answer(connection, method, target, body, headers, deadline)
        finally:
            connection.close()

    def _why_not(self, answer: _Answer) -> Exception:
        status, later = answer.status, _retry_after(answer.headers)
        said = f"the gateway answered {status}"
        if status in {429, 503} and later is not None:
            return RetryLater(f"{said}: again in {later.total_seconds():.0f} s", after=later)
        if status in _MENDABLE or status in _MOVED:
            return NotDone(said)
        if status == 409 and self.honours_keys:
            # By custom: an earlier request with this key is still under way.
            return MaybeSent(said)
        if 400 <= status < 500:
            return Reject(said)
        # A 500 may come after the work. So may a 502, 503 or 504: a proxy says it when the gateway behind it broke off.
        return MaybeSent(said)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: HTTPMessage
    #: The body, if it is a JSON object.
    content: dict[str, Any] | None


class _FinalResponse(HTTPResponse):
    """The final answer to a request. Any number of interim ones may precede it, of statuses that a client need not
    know (RFC 9110, 15.2); `http.client` itself skips 100 alone."""

    def begin(self) -> None:
        """Read up to the final answer's headers. Raises HTTPException where none follows MOST_INTERIM_ANSWERS."""
        for _ in range(MOST_INTERIM_ANSWERS + 1):
            super().begin()
            # After 101 the connection speaks another protocol: no answer follows.
            if self.status >= 200 or self.status == HTTPStatus.SWITCHING_PROTOCOLS:
                return
            self.headers = self.msg = None  # type: ignore[assignment]  # as before the first answer
        raise HTTPException("only interim answers")


def _connected(scheme: str, host: str, port: int | None, patience: float) -> HTTPConnection:
    """Return a connection that stands, TLS included. Raises NotDone after `patience` seconds: nothing was sent."""
    connection = (
        HTTPSConnection(host, port, timeout=patience, context=_trust())
        if scheme == "https"
        else HTTPConnection(host, port, timeout=patience)
    )
    connection.response_class = _FinalResponse
    opening = _Opening(connection)
    error = opening.result(patience)
    if error is not None:
        raise NotDone(f"the gateway cannot be reached: {_named(error)}") from None
    return connection


class _Opening:
    """Connects, on a thread of its own: nothing else bounds a name's resolution, or the tries of several addresses."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._given_up = False
        self._error: Exception | None = TimeoutError()
        self._thread = threading.Thread(target=self._run, name="sms-connect", daemon=True)

    def result(self, patience: float) -> Exception | None:
        """Return what went wrong, if anything did, after `patience` seconds at most."""
        try:
            self._thread.start()
        except RuntimeError as error:
            return OSError(errno.EAGAIN, f"no thread could be started for it ({error})")
        self._thread.join(patience)
        with self._lock:
            self._given_up = True
            return self._error

    def _run(self) -> None:
        error: Exception | None = None
        try:
            self._connection.connect()
        except Exception as refused:
            error = refused
        with self._lock:
            if not self._given_up:
                self._error = error
                return
        self._connection.close()


def _answer(
    connection: HTTPConnection, method: str, target: str, body: bytes | None, headers: dict[str, str], deadline: float
) -> _Answer:
    """Speak, and return what comes back until `deadline` (monotonic). Whatever goes wrong here leaves a doubt."""
    connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
    connection.sock = _Line(connection.sock, deadline)
    try:
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        received = b""
        while len(received) <= LONGEST_ANSWER:
            more = response.read1(LONGEST_ANSWER)
            if not more:
                break
            received += more
        return _Answer(response.status, response.headers, _object_in(received))
    except (OSError, HTTPException, ValueError) as error:
        raise MaybeSent(f"no answer to be understood: {_named(error)}") from None


class _Line:
    """A socket, as far as `http.client` needs one, from which nothing is read after `deadline` (monotonic).

    A socket's own time-out begins anew with each byte: a gateway that lets them drip could hold the thread for days.
    """

    def __init__(self, line: socket.socket, deadline: float) -> None:
        self._line = line
        self._deadline = deadline
        self.sendall = line.sendall
        self.close = line.close

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reading(self._line, self._deadline))


class _Reading(io.RawIOBase):
    def __init__(self, line: socket.socket, deadline: float) -> None:
        self._line = line
        self._deadline = deadline
        self._file = line.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer in time")
        self._line.settimeout(left)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _object_in(body: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(body) if len(body) <= LONGEST_ANSWER else None
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _id_in(answer: _Answer) -> str:
    """Return the id in a good answer. Raises MaybeSent where there is none: such an answer says nothing."""
    reference = answer.content.get("id") if answer.content else None
    if isinstance(reference, bool) or not isinstance(reference, str | int) or not str(reference).strip():
        raise MaybeSent(f"the gateway answered {answer.status}, but not as agreed: no JSON object with an id")
    return str(reference).strip()


def _retry_after(headers: HTTPMessage) -> timedelta | None:
    """Return the rest that the gateway asks for, in seconds or until a date, within reason."""
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = int(text) if text.isdecimal() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return timedelta(seconds=min(max(seconds, 1), LONGEST_REST.total_seconds()))


def _header_safe(key: str) -> str:
    # Ids of our own messages stay as they are; a foreign one may hold anything.
    return quote(key, safe=":")


def _problem_with(url: str) -> str:
    if not url:
        return "is missing"
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:
        return "is no address"
    # None is repeated: there may be a secret in it.
    if address.scheme not in {"http", "https"} or not address.hostname or port == 0:
        return "must be an address such as https://sms.example/messages"
    if address.username is not None or address.password is not None:
        return "must not hold a user or password"
    if address.fragment or not re.fullmatch(r"[\x21-\x7e]+", url):
        return "has characters that must be written as %XX"
    return ""


def _named(error: BaseException) -> str:
    """Return what happened, without what the other side said: it may repeat the text, or the number."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


@cache
def _trust() -> ssl.SSLContext:
    """The certificates of the system, read once: that takes longer than a text."""
    return ssl.create_default_context()
