"""RabbitMQ's management API, over HTTP: what exists on the broker, and who uses it. AMQP itself lists nothing.

It needs the plugin `rabbitmq_management`, and a user with the tag `management`
(https://www.rabbitmq.com/docs/management).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from messaging.broker.connection import Connection
from messaging.broker.management_http import Address, ManagementClient, ManagementUnavailable, addresses
from messaging.broker.subscription import PRIVATE_QUEUE
from messaging.exceptions import OperationRefused

#: Objects on a page: as many as RabbitMQ allows.
PAGE_SIZE = 500
#: Seconds for which a node of a cluster may not know yet what was declared at another one.
QUEUE_DELAY = 1.0
#: Seconds between two looks.
LOOK_EVERY = 0.2


class Management(ManagementClient):
    """One management API, asked for one virtual host. Answers are lists of objects, as RabbitMQ gives them.

    Every method raises ManagementUnavailable.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._vhost = quote(address.vhost, safe="")

    def check(self) -> None:
        """Check that it answers, and shows this user the virtual host."""
        self.get(f"/exchanges/{self._vhost}?page=1&page_size=1&columns=name", dict)

    def overview(self) -> dict[str, Any]:
        """The broker: its version, its totals."""
        return self.get("/overview", dict)

    def alarms(self) -> str:
        """Return in words which alarms block publishers; empty if there is none."""
        status, content = self.request("/health/checks/alarms")
        found = self.decoded(status, content, allowed={HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE})
        if status == HTTPStatus.OK:
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
        return list(self._pages("queues", columns, "name"))

    def exchanges(self) -> list[dict[str, Any]]:
        """Every exchange."""
        needed = ("name", "type", "durable", "auto_delete", "internal")
        return list(self._pages("exchanges", ",".join([*needed, "arguments", "policy"]), *needed))

    def policies(self) -> list[dict[str, Any]]:
        """Every policy but the operators', which do not concern exchanges."""
        return self.get(f"/policies/{self._vhost}", list)

    def bindings(self) -> list[dict[str, Any]]:
        """Every binding. RabbitMQ has no pages of them."""
        return self.get(f"/bindings/{self._vhost}", list, "source", "destination")

    def consumers(self) -> list[dict[str, Any]]:
        """Every consumer."""
        return self.get(f"/consumers/{self._vhost}", list)

    def connections(self) -> list[dict[str, Any]]:
        """Every connection; without the tag `monitoring`, those of this user."""
        return self.get(f"/vhosts/{self._vhost}/connections", list)

    def tags(self) -> set[str]:
        """This user's tags."""
        found = self.get("/whoami", dict).get("tags")
        # A text up to RabbitMQ 3.8, a list since.
        return {each.strip() for each in (found.split(",") if isinstance(found, str) else found or [])}

    # --- whose API it is: at the usual port of the broker's host another broker may answer ---------------------

    def check_same_broker(self, connection: Connection) -> None:
        """Raise ManagementUnavailable if it belongs to another broker than `connection`.

        Clusters have names, but two brokers may have the same: the default is the host's name. Then an exclusive queue
        of this connection decides, which only the same broker knows; ports do not, because proxies change them. An
        account that may declare no queue has to rely on the name.
        """
        name = str(self.overview().get("cluster_name") or "")
        another = f"{self.address} is the management API of another broker"
        if name and connection.cluster and name != connection.cluster:
            raise ManagementUnavailable(
                f"{another}, {name}; AMQP_URL leads to {connection.cluster} (set AMQP_MANAGEMENT_URL)"
            )
        if not self._knows(connection):
            raise ManagementUnavailable(
                f"{another}: it does not know the connection by AMQP_URL (set AMQP_MANAGEMENT_URL)"
            )

    def _knows(self, connection: Connection) -> bool:
        try:
            queue = connection.call("queue_declare", **PRIVATE_QUEUE).queue
        except OperationRefused:
            return True
        deadline = time.monotonic() + QUEUE_DELAY
        try:
            while not (known := self._knows_queue(queue)) and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY)
        finally:
            connection.call("queue_delete", queue=queue)
        return known

    def _knows_queue(self, name: str) -> bool:
        status, content = self.request(f"/queues/{self._vhost}/{quote(name, safe='')}?columns=name")
        if status == HTTPStatus.NOT_FOUND:
            return False
        self.decoded(status, content)
        return True

    # --- HTTP --------------------------------------------------------------------------------------------------

    def _pages(self, what: str, columns: str, *needed: str) -> Iterator[dict[str, Any]]:
        """Yield every object by page, each name once. An object that appears or goes meanwhile may be missing."""
        seen: set[str] = set()
        page = 1
        while True:
            query = urlencode({"page": page, "page_size": PAGE_SIZE, "columns": columns})
            status, content = self.request(f"/{what}/{self._vhost}?{query}")
            if status == HTTPStatus.BAD_REQUEST and page > 1:
                return  # so many have gone meanwhile that there is no such page
            found = self.decoded(status, content)
            if not (isinstance(found, dict) and isinstance(pages := found.get("page_count", 0), int)):
                raise self.is_something_else()
            self.require_objects(found.get("items"), needed)
            for each in found["items"]:
                if each["name"] not in seen:
                    seen.add(each["name"])
                    yield each
            if page >= pages:
                return
            page += 1


def reached(connection: Connection | None = None) -> Management:
    """Return the first management API that shows this user its virtual host and belongs to the broker of `connection`.

    Raises ManagementUnavailable, with the reason of each address.
    """
    reasons: list[str] = []
    for address in addresses():
        management = Management(address)
        try:
            management.check()
            if connection is not None:
                management.check_same_broker(connection)
        except ManagementUnavailable as error:
            reasons.append(str(error))
        else:
            return management
    raise ManagementUnavailable("; ".join(dict.fromkeys(reasons)))
