"""`manage.py mq queues | exchanges | bindings | consumers | connections`: what exists on the broker, by its management
API. AMQP itself lists nothing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError

from messaging.broker.management_http import ManagementUnavailable
from messaging.management.errors import EXIT_UNREACHABLE, broker_told_in_one_line
from messaging.management.tables import write_facts, write_table
from messaging.topology.existing import Existing, counted_now, opened_existing, own_queue_names, table
from messaging.validation import texts

#: So many queues are asked for the counts of this moment; of more, those of the last 5 seconds must do.
COUNTED_NOW = 100
_EXIT_CODES = """
exit codes: 0 done, 1 no such name, 2 wrong arguments, 3 broker or management API unreachable, 7 it did not answer in
time, 130 interrupted
"""

Facts = dict[str, Any]


@contextmanager
def needing_the_management_api() -> Iterator[None]:
    """Convert broker errors into a CommandError, and the lack of the management API into one sentence (exit code 3)."""
    with broker_told_in_one_line():
        try:
            yield
        except ManagementUnavailable as error:
            raise CommandError(f"This needs RabbitMQ's management API: {error}.", returncode=EXIT_UNREACHABLE) from None


class Listing:
    """A sub-command that lists one kind of object: as a table, tab-separated in a pipe, or as JSON with all facts."""

    EXAMPLES: ClassVar[str]
    #: What a name on the command line is, and the facts by which it chooses an object.
    named: ClassVar[str]
    called: ClassVar[Sequence[str]] = ("name",)
    #: The lists of `Existing` whose objects exist, whether or not something is listed for them.
    known_by: ClassVar[Sequence[str]] = ()
    columns: ClassVar[Sequence[str]]
    #: How many columns, the last ones, share a line of their own on a terminal; and which column may be folded.
    beneath: ClassVar[int] = 0
    wide: ClassVar[int] = 0

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of this sub-command."""
        parser.add_argument("names", nargs="*", metavar="NAME", help=f"{self.named} (default: all)")
        parser.add_argument("--json", action="store_true", help="one JSON object a line")

    def columns_on(self, command: BaseCommand, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the columns that are shown: all in a pipe."""
        return self.columns

    def run(self, command: BaseCommand, options: Mapping[str, Any]) -> None:
        """List all, or what was named. Raises CommandError where a name does not exist."""
        names = options["names"]
        with needing_the_management_api(), opened_existing() as existing:
            found = self.found(existing, options)
            chosen = [each for each in found if not names or any(each[fact] in names for fact in self.called)]
            if options["json"]:
                write_facts(command.stdout, chosen)
            elif chosen or not names:
                columns = self.columns_on(command, options)
                rows = [self.row(each)[: len(columns)] for each in chosen]
                beneath = self.beneath - (len(self.columns) - len(columns))
                write_table(command.stdout, columns, rows, wide=self.wide, beneath=beneath)
            command.stderr.write(self.note(existing), style_func=str)
            known = {each[fact] for each in found for fact in self.called}
            if names:
                known.update(each.name for list_ in self.known_by for each in getattr(existing, list_)())
        if missing := [name for name in dict.fromkeys(names) if name not in known]:
            raise CommandError(f"There is no {self.named} {', '.join(missing)}.")

    def found(self, existing: Existing, options: Mapping[str, Any]) -> list[Facts]:
        """Return the facts of each object, at least of those that were named."""
        raise NotImplementedError

    def row(self, facts: Facts) -> Sequence[Any]:
        """Return the cells of an object's row."""
        raise NotImplementedError

    def note(self, existing: Existing) -> str:
        """Return what is written beside the table, to standard error: a pipe gets the table alone."""
        return existing.how


class Queues(Listing):
    EXAMPLES = f"""
examples:
  manage.py mq queues                              every queue of the virtual host, this project's own first
  manage.py mq queues -v 2                         on a terminal, their arguments too
  manage.py mq queues hello orders.sms             these two
  manage.py mq queues --json | jq .ready           one JSON object a line
  manage.py mq queues | cut -f 1,3                 in a pipe: name, type, ready, unacked, consumers, how, arguments
{_EXIT_CODES}"""
    named = "queue"
    columns = ("queue", "type", "ready", "unacked", "consumers", "how", "arguments")
    beneath = 2

    def found(self, existing: Existing, options: Mapping[str, Any]) -> list[Facts]:
        names = options["names"]
        queues = [each for each in existing.queues() if not names or each.name in names]
        if len(queues) <= COUNTED_NOW:
            queues = counted_now(existing.connection, queues)
        own = set(own_queue_names())
        return [asdict(each) for each in sorted(queues, key=lambda queue: (queue.name not in own, queue.name))]

    def columns_on(self, command: BaseCommand, options: Mapping[str, Any]) -> Sequence[str]:
        """Return all columns, on a terminal the arguments with -v 2 alone: for most people they are noise."""
        return self.columns[:-1] if command.stdout.isatty() and options["verbosity"] < 2 else self.columns

    def row(self, facts: Facts) -> Sequence[Any]:
        arguments = {name: value for name, value in facts["arguments"].items() if name != "x-queue-type"}
        policy = f"policy {facts['policy']}" if facts["policy"] else ""
        silent = "does not answer" if facts["silent"] else ""
        counts = [facts[name] for name in ("name", "type", "ready", "unacked", "consumers")]
        return [*counts, _how(facts, policy, silent), in_words(arguments)]


class Exchanges(Listing):
    EXAMPLES = f"""
examples:
  manage.py mq exchanges                           every exchange but those that RabbitMQ itself made
  manage.py mq exchanges --all                     these too
  manage.py mq exchanges logs --json               one, as JSON
{_EXIT_CODES}"""
    named = "exchange"
    columns = ("exchange", "type", "how")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--all", action="store_true", help="also those that RabbitMQ itself made")

    def found(self, existing: Existing, options: Mapping[str, Any]) -> list[Facts]:
        everything = options["all"] or options["names"]
        return [
            asdict(each)
            for each in existing.exchanges()
            if everything or (each.name and not each.name.startswith(texts.RESERVED_PREFIX))
        ]

    def row(self, facts: Facts) -> Sequence[Any]:
        return facts["name"] or "(default)", facts["type"], _how(facts)


class Bindings(Listing):
    EXAMPLES = f"""
examples:
  manage.py mq bindings                            every binding, but each queue's own to the default exchange
  manage.py mq bindings orders.events orders.sms   those of this exchange, and of this queue
{_EXIT_CODES}"""
    named = "queue or exchange"
    called = ("source", "destination")
    known_by = ("queues", "exchanges")
    columns = ("exchange", "key", "to", "arguments")
    beneath, wide = 1, 2

    def found(self, existing: Existing, options: Mapping[str, Any]) -> list[Facts]:
        return [asdict(each) for each in existing.bindings()]

    def row(self, facts: Facts) -> Sequence[Any]:
        to = f"{facts['kind']} {facts['destination']}"
        return facts["source"], facts["key"], to, in_words(facts["arguments"])


class Consumers(Listing):
    EXAMPLES = f"""
examples:
  manage.py mq consumers                           every consumer
  manage.py mq consumers orders.sms                those of one queue
{_EXIT_CODES}"""
    named = "queue"
    called = ("queue",)
    known_by = ("queues",)
    columns = ("queue", "prefetch", "acknowledges", "tag", "connection")
    beneath = 2

    def found(self, existing: Existing, options: Mapping[str, Any]) -> list[Facts]:
        names = {str(each.get("name")): _client_name(each) for each in existing.api.connections()}
        found = [
            {
                "queue": each["queue"]["name"],
                "tag": each.get("consumer_tag", ""),
                "prefetch": each.get("prefetch_count", 0),
                "acknowledges": each.get("ack_required", True),
                "connection": names.get(connection, connection),
            }
            for each in existing.api.consumers()
            for connection in [str(table(each.get("channel_details")).get("connection_name", ""))]
        ]
        return sorted(found, key=lambda each: (each["queue"], each["connection"], each["tag"]))

    def row(self, facts: Facts) -> Sequence[Any]:
        acknowledges = "yes" if facts["acknowledges"] else "no"
        return facts["queue"], facts["prefetch"], acknowledges, facts["tag"], facts["connection"]


class Connections(Listing):
    EXAMPLES = f"""
examples:
  manage.py mq connections                         every connection; without the tag `monitoring`, this user's own
  manage.py mq connections warren-web              those of this user, or of this name
{_EXIT_CODES}"""
    named = "connection or user"
    called = ("name", "user")
    columns = ("connection", "user", "from", "state", "channels", "since")
    beneath = 1

    def found(self, existing: Existing, options: Mapping[str, Any]) -> list[Facts]:
        found = [
            {
                "name": _client_name(each),
                "user": each.get("user", ""),
                "address": f"{each.get('peer_host', '?')}:{each.get('peer_port', '?')}",
                "state": each.get("state", ""),
                "channels": each.get("channels", 0),
                "since": datetime.fromtimestamp(since / 1000, UTC) if isinstance(since, int) else None,
            }
            for each in existing.api.connections()
            for since in [each.get("connected_at")]
        ]
        return sorted(found, key=lambda each: (each["name"], each["address"]))

    def row(self, facts: Facts) -> Sequence[Any]:
        return tuple(facts.values())

    def note(self, existing: Existing) -> str:
        if existing.api.tags() & {"monitoring", "administrator"}:
            return existing.how
        return f"{existing.how}\nOnly this user's own: those of others are for users with the tag `monitoring`."


def _how(facts: Facts, *more: str) -> str:
    properties = [name.replace("_", "-") for name in ("exclusive", "auto_delete", "internal") if facts.get(name)]
    return " ".join(filter(None, ["durable" if facts["durable"] else "transient", *properties, *more]))


def _client_name(facts: Facts) -> str:
    return str(table(facts.get("client_properties")).get("connection_name") or facts.get("name", ""))


def in_words(arguments: Mapping[str, Any]) -> str:
    """Return an AMQP table as text."""
    return " ".join(f"{name}={value}" for name, value in sorted(arguments.items()))
