"""A client for an SMS gateway over HTTP: it sends one text per request, and says what is known afterwards.

A text was surely not sent before the first byte of its request left, or if the gateway says so. It was sent if the
gateway answers with its id. Everything else is in doubt. docs/configuration.md lists the meaning of each answer.

Each text has a connection of its own. The gateway may close an idle connection just as the next request is written to
it, and then the client cannot know whether that request was read.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from messaging.exceptions import NotDone, Reject, RetryLater

if TYPE_CHECKING:
    import httpx

#: Share of the time that connecting may take, so that a failed connection is known while there is time to record it.
CONNECTING = 0.5
#: Bytes of an answer that are read.
LONGEST_ANSWER = 64 * 1024
#: Longest delay that a gateway can ask for.
LONGEST_DELAY = timedelta(hours=1)

#: 4xx with a cause that is not the text: a wrong token, no credit, a wrong path, or merely "later". Nothing was sent.
_MENDABLE = {401, 402, 403, 404, 405, 407, 408, 410, 421, 423, 425, 426, 429}
#: "Send it to another address." 302 and 303 may also mean that it was sent, and the result is at another address.
_MOVED = {301, 307, 308}

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OUR_HEADERS = {
    "authorization",
    "host",
    "connection",
    "content-type",
    "content-length",
    "transfer-encoding",
    "accept-encoding",
}


class MaybeSent(Exception):
    """The text may have been sent or not: the gateway did not answer, or its answer does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmsGateway:
    """Where texts are posted to, as `{"to": …, "text": …}`, and with which headers.

    `ask_url`, if given, says whether the text with a key was sent; "{key}" in it stands for the key. Both addresses
    answer with a JSON object that has an `id`.
    """

    url: str
    token: str
    key_header: str = "Idempotency-Key"
    honours_keys: bool = False
    ask_url: str = ""

    def send(self, to: str, text: str, *, key: str, timeout: float) -> str:
        """Send a text and return the gateway's id for it. Sending begins within `timeout` seconds, or not at all.

        Raises NotDone, RetryLater or Reject if it surely was not sent, and MaybeSent if that is unknown.
        """
        answer = self._exchange("POST", self.url, key, timeout, json.dumps({"to": to, "text": text}).encode())
        if 200 <= answer.status < 300:
            return _id_in(answer)
        raise self._error_for(answer)

    def ask(self, key: str, *, timeout: float) -> str | None:
        """Return the gateway's id for the text with this key, or None if the gateway says that there is no such text.

        Raises the errors of `send` if the gateway does not say.
        """
        url = self.ask_url.replace("{key}", quote(_header_safe(key), safe=""))
        answer = self._exchange("GET", url, key, timeout)
        if 200 <= answer.status < 300:
            return _id_in(answer)
        # A web server's own page for any wrong address says nothing about texts.
        if answer.status == 404 and answer.content is not None:
            return None
        raise MaybeSent(f"asked whether it was sent, the gateway answered {answer.status}")

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (setting, problem) for each wrong setting: url, token, key_header or ask_url."""
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
        # Importing it takes 0.15 s, which most processes can do without.
        import httpx

        for setting, problem in self.problems():
            raise NotDone(f"SMS_GATEWAY_{setting.upper()} {problem}")
        headers = {
            "Authorization": f"Bearer {self.token}",
            self.key_header: _header_safe(key),
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # without it a server may compress as it likes (RFC 9110, 12.5.3)
            "Connection": "close",
        }
        # The transport alone: a client would follow proxies of the environment, and log addresses.
        transport = httpx.HTTPTransport(verify=_system_certificates())
        return _Exchange(httpx.Request(method, url, headers=headers, content=body), transport, timeout).answer()

    def _error_for(self, answer: _Answer) -> Exception:
        status, delay = answer.status, _retry_after(answer.headers)
        reason = f"the gateway answered {status}"
        if status in {429, 503} and delay is not None:
            return RetryLater(f"{reason}: again in {delay.total_seconds():.0f} s", after=delay)
        if status in _MENDABLE or status in _MOVED:
            return NotDone(reason)
        if status == 409 and self.honours_keys:
            # By convention, an earlier request with this key is still in progress.
            return MaybeSent(reason)
        if 400 <= status < 500:
            return Reject(reason)
        # A 500 may come after the text was sent. So may a 502, 503 or 504, if a proxy lost the gateway behind it.
        return MaybeSent(reason)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    #: The body, if it is a JSON object.
    content: dict[str, Any] | None


class _Exchange:
    """One request and its answer, on a thread of its own.

    Only a thread bounds the whole time: a name's resolution and the attempts at several addresses have no timeout
    together, and a read timeout begins anew with each byte of an answer that drips in.
    """

    def __init__(self, request: httpx.Request, transport: httpx.HTTPTransport, timeout: float) -> None:
        self._connecting = timeout * CONNECTING
        self._deadline = time.monotonic() + timeout
        limits = {"connect": self._connecting, "read": timeout, "write": timeout, "pool": timeout}
        request.extensions = {"timeout": limits, "trace": self._trace}
        self._request, self._transport = request, transport
        self._lock = threading.Lock()
        #: Whether the first byte of the request may have left.
        self._begun = False
        #: Whether the request must not begin any more.
        self._given_up = False
        self._socket: socket.socket | None = None
        self._answer: _Answer | None = None
        self._error: Exception = TimeoutError()

    def answer(self) -> _Answer:
        """Return the answer. Raises NotDone if the request did not begin, MaybeSent if no answer came to it in time."""
        thread = threading.Thread(target=self._run, name="sms-gateway", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise NotDone(f"no thread could be started to send it: {error}") from None
        thread.join(self._connecting)
        with self._lock:
            self._given_up = True
        if self._begun:
            thread.join(max(0.0, self._deadline - time.monotonic()))
        # What the thread meets once we have hung up is our own doing.
        reason = self._error
        self._hang_up()
        if self._answer is not None:
            return self._answer
        if self._begun:
            raise MaybeSent(f"no answer that can be understood: {_description(reason)}")
        raise NotDone(f"the gateway cannot be reached: {_description(reason)}")

    def _run(self) -> None:
        try:
            with self._transport as transport:
                response = transport.handle_request(self._request)
                received = b""
                for piece in response.iter_bytes():
                    received += piece
                    if len(received) > LONGEST_ANSWER:
                        break
            self._answer = _Answer(response.status_code, response.headers, _object_in(received))
        except Exception as error:
            self._error = error

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            self._socket = info["return_value"].get_extra_info("socket")
        elif event == "http11.send_request_headers.started":
            with self._lock:
                # If this process stood still while it connected, others may by now consider the text abandoned.
                if self._given_up or time.monotonic() >= self._deadline:
                    raise TimeoutError
                self._begun = True

    def _hang_up(self) -> None:
        """End the connection, and with it the thread if it still reads."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _object_in(body: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(body) if len(body) <= LONGEST_ANSWER else None
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _id_in(answer: _Answer) -> str:
    """Return the id in a good answer. Raises MaybeSent if there is none: such an answer says nothing."""
    reference = answer.content.get("id") if answer.content else None
    if isinstance(reference, bool) or not isinstance(reference, str | int) or not str(reference).strip():
        raise MaybeSent(f"the gateway answered {answer.status}, but without a JSON object that has an id")
    return str(reference).strip()


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """Return the delay that the gateway asks for, in seconds or until a date, within reason."""
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = int(text) if text.isdecimal() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return timedelta(seconds=min(max(seconds, 1), LONGEST_DELAY.total_seconds()))


def _header_safe(key: str) -> str:
    # The ids of our own messages stay as they are; a foreign id may hold any character.
    return quote(key, safe=":")


def _problem_with(url: str) -> str:
    if not url:
        return "is missing"
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:
        return "is no address"
    # No message repeats the address: it may hold a secret.
    if address.scheme not in {"http", "https"} or not address.hostname or port == 0:
        return "must be an address such as https://sms.example/messages"
    if address.username is not None or address.password is not None:
        return "must not hold a user or password"
    if address.fragment or not re.fullmatch(r"[\x21-\x7e]+", url):
        return "has characters that must be written as %XX"
    return ""


def _description(error: BaseException) -> str:
    """Return what went wrong, without any text of the gateway: it may repeat the text or the phone number."""
    while deeper := error.__cause__ or error.__context__:
        error = deeper
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
def _system_certificates() -> ssl.SSLContext:
    """Return the system's certificates. They are read once, as that takes longer than sending a text."""
    return ssl.create_default_context()
