"""Accounts at the test's broker with the rights that `mq grants` prints, one for each role."""

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from urllib.parse import quote

from django.core.management import call_command

from messaging.validation.addresses import broker_address
from script.services.rabbitmq import RabbitMQNode


class Accounts(Mapping[str, str]):
    """AMQP addresses by name of the account, all into one vhost. Made by the first `grant`, and taken away after."""

    def __init__(self, broker: RabbitMQNode, vhost: str, directory: Path) -> None:
        self.password = secrets.token_hex(8)
        self._broker = broker
        self._vhost = broker_address(vhost).vhost
        self._file = directory / "grants.json"
        self._names: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        user = quote(self._names[name], safe="")
        return f"amqp://{user}:{self.password}@127.0.0.1:{self._broker.port}/{quote(self._vhost, safe='')}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def grant(self, *users: str, by_rabbitmqctl: bool = False) -> None:
        """Do what `mq grants --json` says; `users` are its --user arguments, by default one for each role.

        The management API imports definitions as `rabbitmqctl import_definitions` does, and sooner.
        """
        output = StringIO()
        call_command("mq", "grants", "--json", "--vhost", self._vhost, *(f"--user={each}" for each in users),
                     stdout=output)  # fmt: skip
        definitions = json.loads(output.getvalue())
        for each in definitions["permissions"]:
            if each["user"] not in self._names.values():
                body = {"password": self.password, "tags": ""}
                self._broker.api("PUT", f"/users/{quote(each['user'], safe='')}", body)
                self._names[each["user"].partition("-")[2] or each["user"]] = each["user"]
        if by_rabbitmqctl:
            self._file.write_text(output.getvalue())
            self._broker.ctl("import_definitions", str(self._file))
        else:
            self._broker.api("POST", "/definitions", definitions)

    def remove(self) -> None:
        """Delete the accounts."""
        for user in self._names.values():
            self._broker.api("DELETE", f"/users/{quote(user, safe='')}")


@contextmanager
def accounts_at(broker: RabbitMQNode, vhost: str, directory: Path) -> Iterator[Accounts]:
    """Accounts that are gone when the block is left."""
    accounts = Accounts(broker, vhost, directory)
    try:
        yield accounts
    finally:
        accounts.remove()
