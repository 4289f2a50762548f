"""HTTP to RabbitMQ's management API, and the reasons in words why it gives no answer."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Collection, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from messaging import conf
from messaging.broker.errors import GUEST_IS_LOCAL, describe
from messaging.exceptions import BrokerUnavailable
from messaging.validation import tls
from messaging.validation.addresses import BrokerAddress, bracketed

if TYPE_CHECKING:
    import httpx

#: Seconds until an address has given its first answer; callers can do without the API.
FIRST_ANSWER = 3.0
#: Seconds that each further answer may take. A busy broker with thousands of queues needs them.
ANSWER = 20.0
#: Bytes of one answer that are read at most. Pages are far below, lists of bindings are not.
LARGEST_ANSWER = 256 * 1024 * 1024
#: The plugin's scheme and port, by the scheme of the AMQP address.
PORTS = {"amqp": ("http", 15672), "amqps": ("https", 15671)}

_Kind = TypeVar("_Kind", dict[str, Any], list[dict[str, Any]])
#: What RabbitMQ 4.3 and later answers to an account without access to the virtual host.
_NO_ACCESS = b'{"error":"not_found","reason":"Not Found"}'


class ManagementUnavailable(BrokerUnavailable):
    """The management API does not answer, or not this user; the text says why, without any password."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a management API is expected; the account and the virtual host that it is asked for."""

    scheme: str
    host: str
    port: int
    #: In front of every path: RabbitMQ's `management.path_prefix`.
    prefix: str
    user: str
    password: str = field(repr=False)
    vhost: str

    def __str__(self) -> str:
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}{self.prefix}"


def addresses() -> list[Address]:
    """Return where the management API may answer: MANAGEMENT_URL, or the host of each AMQP address in turn."""
    settings = conf.get()
    return list(dict.fromkeys(_address(broker, settings.management_url) for broker in settings.brokers))


def _address(broker: BrokerAddress, management_url: str) -> Address:
    scheme, port = PORTS[broker.scheme]
    given = urlsplit(management_url or f"{scheme}://{bracketed(broker.host)}:{port}")
    return Address(
        scheme=given.scheme,
        host=given.hostname or "",
        port=given.port or PORTS["amqps" if given.scheme == "https" else "amqp"][1],
        prefix=given.path.rstrip("/").removesuffix("/api"),  # which is added to every path
        user=unquote(given.username) if given.username else broker.user,
        password=unquote(given.password or "") if given.username else broker.password,
        vhost=broker.vhost,
    )


class ManagementClient:
    """Sends GET requests to one management API. Every method raises ManagementUnavailable."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._has_answered = False

    def get(self, path: str, kind: type[_Kind], *needed: str) -> _Kind:
        """Return the JSON object, or list of objects, at `path`. Each object of a list has what is `needed`."""
        found = self.decoded(*self.request(path))
        if not isinstance(found, kind):
            raise self.is_something_else()
        if isinstance(found, list):
            self.require_objects(found, needed)
        return found

    def require_objects(self, found: Any, needed: Iterable[str]) -> None:
        """Check that a list holds objects alone, each with what is `needed`."""
        names = set(needed)
        if not (isinstance(found, list) and all(isinstance(each, dict) and names <= each.keys() for each in found)):
            raise self.is_something_else()

    def request(self, path: str) -> tuple[int, bytes]:
        """Return status and body of the answer to a GET."""
        import httpx  # here, because it takes 0.15 s and few processes need it

        patience = ANSWER if self._has_answered else FIRST_ANSWER
        try:
            return self._answer(f"{self.address}/api{path}", patience)
        except (httpx.TimeoutException, TimeoutError):
            raise ManagementUnavailable(f"{self.address} did not answer within {patience:g} s") from None
        except (httpx.ReadError, httpx.WriteError):
            raise ManagementUnavailable(f"the server at {self.address} hung up") from None
        except httpx.ConnectError as error:
            raise ManagementUnavailable(self._unreachable(error)) from None
        except httpx.HTTPError as error:
            if "disconnected" in str(error):
                raise ManagementUnavailable(f"the server at {self.address} hung up") from None
            raise self.is_something_else() from None

    def _answer(self, url: str, patience: float) -> tuple[int, bytes]:
        import httpx

        deadline = time.monotonic() + patience
        content = bytearray()
        request = httpx.Request("GET", url, extensions={"timeout": httpx.Timeout(patience).as_dict()})
        request = next(httpx.BasicAuth(self.address.user, self.address.password).auth_flow(request))
        # The transport alone: a client would log each request, follow the environment's proxies, and keep connections.
        with (
            httpx.HTTPTransport(verify=self._trusted()) as transport,
            closing(transport.handle_request(request)) as answer,
        ):
            self._has_answered = True
            # httpx limits each read alone: a server could send one byte a second.
            for piece in answer.iter_bytes():
                content += piece
                if time.monotonic() > deadline:
                    raise TimeoutError
                if len(content) > LARGEST_ANSWER:
                    raise self.is_something_else()
        return answer.status_code, bytes(content)

    def _trusted(self) -> ssl.SSLContext | bool:
        if self.address.scheme == "http":
            return False
        settings = conf.get()
        return tls.context(settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file)

    def _unreachable(self, error: httpx.ConnectError) -> str:
        cause: BaseException = error
        while not isinstance(cause, OSError) and (deeper := cause.__cause__ or cause.__context__):
            cause = deeper
        if isinstance(cause, ConnectionRefusedError):
            return (
                f"nothing listens at {self.address} (is the plugin rabbitmq_management enabled? Or set "
                'MESSAGING["MANAGEMENT_URL"])'
            )
        return f"{self.address}: {describe(cause)}"

    def decoded(self, status: int, content: bytes, allowed: Collection[int] = (HTTPStatus.OK,)) -> Any:
        """Return the JSON of an answer whose status is one of `allowed`."""
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise ManagementUnavailable(f"{self.address} {self._refusal(content)}")
        if status == HTTPStatus.NOT_FOUND and content.strip() == _NO_ACCESS:
            raise ManagementUnavailable(f"{self.address} {self._no_access()}")
        if status == HTTPStatus.NOT_FOUND and b"Object Not Found" in content:
            raise ManagementUnavailable(f"{self.address} knows no virtual host {self.address.vhost!r}")
        if status not in allowed:
            raise self.is_something_else(f" (HTTP {status})")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise self.is_something_else() from None

    def _refusal(self, content: bytes) -> str:
        user = self.address.user
        if b"Not management user" in content:
            return f"tells nothing to user {user}, who lacks the tag: rabbitmqctl set_user_tags {user} management"
        if b"via localhost" in content:
            return f"refused user {user}; {GUEST_IS_LOCAL}"
        if b"virtual host" in content:
            return self._no_access()
        return f"refused user {user}"

    def _no_access(self) -> str:
        return f"says that user {self.address.user} may not enter the virtual host {self.address.vhost!r}"

    def is_something_else(self, more: str = "") -> ManagementUnavailable:
        """Return the error for an answer that is not the management API's."""
        return ManagementUnavailable(f"the server at {self.address} is not RabbitMQ's management API{more}")
