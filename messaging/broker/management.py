"""RabbitMQ's management API, over HTTP: what stands on the broker, and who uses it. AMQP itself lists nothing.

It needs the plugin `rabbitmq_management`, and a user with the tag `management`
(https://www.rabbitmq.com/docs/management).
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from messaging import conf
from messaging.broker.errors import GUEST_IS_LOCAL, describe
from messaging.exceptions import BrokerUnavailable
from messaging.validation import tls
from messaging.validation.addresses import BrokerAddress, bracketed

#: Seconds until one address has answered its first question; whoever asks can do without.
FIRST_ANSWER = 3.0
#: Seconds that one answer may take. On a busy broker with thousands of queues it does.
ANSWER = 20.0
#: Objects asked for at a time: as many as RabbitMQ gives.
PAGE_SIZE = 500
#: Bytes of one answer that are read at most: what comes by the page is far below, lists of bindings are not.
LARGEST_ANSWER = 256 * 1024 * 1024
#: Ports of the plugin, by the scheme of the AMQP address.
PORTS = {"amqp": ("http", 15672), "amqps": ("https", 15671)}

_PIECE = 64 * 1024
_OK = 200
_REFUSED = 401
_FORBIDDEN = 403
_NOT_FOUND = 404
#: What RabbitMQ answers from 4.3 on to who may not enter the virtual host.
_NO_ENTRY = b'{"error":"not_found","reason":"Not Found"}'
_PAGE_OUT_OF_RANGE = 400
_ALARMED = 503


class ManagementUnavailable(BrokerUnavailable):
    """The management API does not answer, or not to this user; the text says why, without any password."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a management API is expected, and who asks for which virtual host."""

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


class Management:
    """One management API, asked for one virtual host. All answers are as RabbitMQ gives them: lists of objects.

    Every method raises ManagementUnavailable.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._first = True

    def knock(self) -> None:
        """See whether it answers, and lets this user look at the virtual host."""
        self._object(f"/exchanges/{self._vhost}?page=1&page_size=1&columns=name")

    def overview(self) -> dict[str, Any]:
        """The broker: its version, its totals."""
        return self._object("/overview")

    def alarms(self) -> str:
        """Return in words which alarms keep publishers waiting; empty where there is none."""
        status, content = self._request("/health/checks/alarms")
        found = self._decoded(status, content, allowed={_OK, _ALARMED})
        if status == _OK:
            return ""
        alarms = found.get("alarms") if isinstance(found, dict) else None
        words = [f"{each.get('resource')} on {each.get('node')}" for each in alarms or [] if isinstance(each, dict)]
        return ", ".join(words) or "an alarm is raised"

    def queues(self) -> list[dict[str, Any]]:
        """Every queue, with its counts, which may be five seconds old."""
        columns = (
            "name,type,durable,auto_delete,exclusive,arguments,messages_ready,messages_unacknowledged,consumers,"
            "policy,operator_policy,effective_policy_definition,state"
        )
        return list(self._pages("queues", columns=columns))

    def knows_queue(self, name: str) -> bool:
        """Whether there is such a queue."""
        status, content = self._request(f"/queues/{self._vhost}/{quote(name, safe='')}?columns=name")
        if status == _NOT_FOUND:
            return False
        self._decoded(status, content)
        return True

    def shows_connections_of(self, user: str) -> bool:
        """Whether `connections` has those of that account."""
        if self.overview().get("disable_stats"):
            return False
        return user == self.address.user or bool(self.tags() & {"monitoring", "administrator"})

    def exchanges(self) -> list[dict[str, Any]]:
        """Every exchange."""
        return list(self._pages("exchanges", columns="name,type,durable,auto_delete,internal,arguments,policy"))

    def policies(self) -> list[dict[str, Any]]:
        """Every policy but the operators', which say nothing of exchanges."""
        return self._list(f"/policies/{self._vhost}")

    def bindings(self) -> list[dict[str, Any]]:
        """Every binding. RabbitMQ has no pages of them."""
        return self._list(f"/bindings/{self._vhost}")

    def consumers(self) -> list[dict[str, Any]]:
        """Every consumer."""
        return self._list(f"/consumers/{self._vhost}")

    def connections(self) -> list[dict[str, Any]]:
        """Every connection; without the tag `monitoring`, those of this user."""
        return self._list(f"/vhosts/{self._vhost}/connections")

    def tags(self) -> set[str]:
        """This user's tags."""
        found = self._object("/whoami").get("tags")
        # A text up to RabbitMQ 3.8, a list since.
        return {each.strip() for each in (found.split(",") if isinstance(found, str) else found or [])}

    @property
    def _vhost(self) -> str:
        return quote(self.address.vhost, safe="")

    def _pages(self, what: str, **parameters: str) -> Iterator[dict[str, Any]]:
        """Yield every object, page by page. What appears or goes meanwhile may be told twice or not at all; by name,
        nothing is told twice."""
        seen: set[str] = set()
        page = 1
        while True:
            query = urlencode({"page": page, "page_size": PAGE_SIZE, **parameters})
            status, content = self._request(f"/{what}/{self._vhost}?{query}")
            if status == _PAGE_OUT_OF_RANGE and page > 1:
                return  # so many have gone meanwhile
            found = self._decoded(status, content)
            if not (isinstance(found, dict) and isinstance(found.get("items"), list)):
                raise self._is_something_else()
            for each in found["items"]:
                if each["name"] not in seen:
                    seen.add(each["name"])
                    yield each
            if page >= int(found.get("page_count", 0)):
                return
            page += 1

    def _list(self, path: str) -> list[dict[str, Any]]:
        found = self._decoded(*self._request(path))
        if not isinstance(found, list):
            raise self._is_something_else()
        return found

    def _object(self, path: str) -> dict[str, Any]:
        found = self._decoded(*self._request(path))
        if not isinstance(found, dict):
            raise self._is_something_else()
        return found

    def _decoded(self, status: int, content: bytes, allowed: Collection[int] = (_OK,)) -> Any:
        if status == _NOT_FOUND and content.strip() == _NO_ENTRY:
            raise ManagementUnavailable(f"{self.address} {self._no_entry()}")
        if status in {_REFUSED, _FORBIDDEN}:
            raise ManagementUnavailable(f"{self.address} {self._refusal(content)}")
        if status == _NOT_FOUND and b"Object Not Found" in content:
            raise ManagementUnavailable(f"{self.address} knows no virtual host {self.address.vhost!r}")
        if status not in allowed:
            raise self._is_something_else(f" (HTTP {status})")
        try:
            return json.loads(content)
        except ValueError:
            raise self._is_something_else() from None

    def _refusal(self, content: bytes) -> str:
        user = self.address.user
        if b"Not management user" in content:
            return f"tells nothing to user {user}, who lacks the tag: rabbitmqctl set_user_tags {user} management"
        if b"via localhost" in content:
            return f"refused user {user}; {GUEST_IS_LOCAL}"
        if b"virtual host" in content:
            return self._no_entry()
        return f"refused user {user}"

    def _no_entry(self) -> str:
        return f"says that user {self.address.user} may not enter the virtual host {self.address.vhost!r}"

    def _is_something_else(self, more: str = "") -> ManagementUnavailable:
        return ManagementUnavailable(f"what answers at {self.address} is not RabbitMQ's management API{more}")

    def _request(self, path: str) -> tuple[int, bytes]:
        """Return status and body of the answer to a GET."""
        patience = FIRST_ANSWER if self._first else ANSWER
        deadline = time.monotonic() + patience
        connection = self._connection(patience)
        try:
            connection.request("GET", f"{self.address.prefix}/api{path}", headers=self._headers())
            answer = connection.getresponse()
            self._first = False
            content = self._read(answer, connection, deadline)
        except TimeoutError:
            raise ManagementUnavailable(f"{self.address} did not answer within {patience:g} s") from None
        except ConnectionRefusedError:
            raise ManagementUnavailable(
                f"nothing listens at {self.address} (is the plugin rabbitmq_management enabled? Or set "
                'MESSAGING["MANAGEMENT_URL"])'
            ) from None
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            raise ManagementUnavailable(f"whoever answers at {self.address} hung up") from None
        except http.client.HTTPException:
            raise self._is_something_else() from None
        except OSError as error:
            raise ManagementUnavailable(f"{self.address}: {describe(error)}") from None
        finally:
            connection.close()
        return answer.status, content

    def _read(self, answer: http.client.HTTPResponse, connection: http.client.HTTPConnection, deadline: float) -> bytes:
        # Piece by piece: the socket's own time-out is for each, and somebody may send one byte a second.
        content = bytearray()
        while piece := answer.read1(_PIECE):
            content += piece
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if len(content) > LARGEST_ANSWER:
                raise self._is_something_else()
            if connection.sock is not None:
                connection.sock.settimeout(left)
        return bytes(content)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        address = self.address
        if address.scheme == "http":
            return http.client.HTTPConnection(address.host, address.port, timeout=timeout)
        settings = conf.get()
        context = tls.context(settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file)
        return http.client.HTTPSConnection(address.host, address.port, timeout=timeout, context=context)

    def _headers(self) -> dict[str, str]:
        credentials = f"{self.address.user}:{self.address.password}".encode()
        return {
            "Authorization": f"Basic {base64.b64encode(credentials).decode()}",
            "Accept": "application/json",
            "Connection": "close",
        }


def addresses() -> list[Address]:
    """Return where the management API may answer: MANAGEMENT_URL, or the host of each AMQP address in turn."""
    settings = conf.get()
    return list(dict.fromkeys(_address(broker, settings.management_url) for broker in settings.brokers))


def reached(check: Callable[[Management], None] = lambda _: None) -> Management:
    """Return the first management API that lets this user look at its virtual host and passes `check`, which raises
    ManagementUnavailable where it does not.

    Raises ManagementUnavailable, with the reason of each address.
    """
    reasons: list[str] = []
    for address in addresses():
        management = Management(address)
        try:
            management.knock()
            check(management)
        except ManagementUnavailable as error:
            reasons.append(str(error))
        else:
            return management
    raise ManagementUnavailable("; ".join(dict.fromkeys(reasons)))


def _address(broker: BrokerAddress, management_url: str) -> Address:
    scheme, port = PORTS[broker.scheme]
    asked = urlsplit(management_url or f"{scheme}://{bracketed(broker.host)}:{port}")
    return Address(
        scheme=asked.scheme,
        host=asked.hostname or "",
        port=asked.port or PORTS["amqps" if asked.scheme == "https" else "amqp"][1],
        prefix=asked.path.rstrip("/"),
        user=unquote(asked.username) if asked.username else broker.user,
        password=unquote(asked.password or "") if asked.username else broker.password,
        vhost=broker.vhost,
    )
