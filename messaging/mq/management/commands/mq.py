"""`manage.py mq …`: RabbitMQ by hand. The sub-commands are in `messaging/mq/`."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from messaging.management.arguments import CommandWithExamples, Later, add_subcommands
from messaging.management.errors import told_when_interrupted
from messaging.management.tables import quiet_when_the_reader_leaves
from messaging.management.terminal_log import quiet_log

EXAMPLES = """
examples:
  manage.py mq publish "Hello World!" --queue task_queue --declare    send a text to a queue, made if need be
  manage.py mq listen hello                                       print what a queue brings
  manage.py mq listen warren.logs "orders.#" "#.error"            print what an exchange routes, by keys
  manage.py mq call fib 30                                        ask a procedure
  manage.py mq peek orders.sms                                    look at what waits, and leave it there
  manage.py mq queues                                             every queue, and what waits in it
  manage.py mq status --watch                                     everything on one screen, what is wrong first
  manage.py mq topology                                           what this project declares on the broker
  manage.py mq topology diff                                      where the broker differs, and what to do about it
  manage.py mq grants                                             least rights for each kind of process
  manage.py mq asyncapi > asyncapi.json                           the interface, for other teams and their tools
  manage.py mq publish --help                                     more about one of them

exit codes: 0 done, 1 something is not as it should be, 2 wrong arguments, 3 broker unreachable, 6 drift, or
something is wrong, 7 it did not answer in time, 130 interrupted
"""
SUBCOMMANDS = {
    "publish": Later(
        "messaging.mq.publish", "send a message to a queue or an exchange, once or often, and say whether it arrived"
    ),
    "listen": Later("messaging.mq.listen", "print the messages of a queue or an exchange, one a line"),
    "call": Later("messaging.mq.call", "call a procedure and print its result"),
    "peek": Later("messaging.mq.peek", "look at the messages that wait in a queue, and leave them there"),
    "purge": Later("messaging.mq.purge", "delete the messages that wait in a queue"),
    "queues": Later(
        "messaging.mq.lists",
        "queues: what waits in them, what consumers hold, and how they were declared",
        of_class="Queues",
    ),
    "exchanges": Later("messaging.mq.lists", "exchanges and their types", of_class="Exchanges"),
    "bindings": Later(
        "messaging.mq.lists", "bindings: from which exchange to which queue, by which key", of_class="Bindings"
    ),
    "consumers": Later(
        "messaging.mq.lists", "consumers: which connection takes messages out of which queue", of_class="Consumers"
    ),
    "connections": Later("messaging.mq.lists", "connections: their users and addresses", of_class="Connections"),
    "status": Later(
        "messaging.mq.status", "broker, queues, outbox, inbox and effects on one screen, what is wrong first"
    ),
    "topology": Later(
        "messaging.mq.topology",
        "what this project declares on the broker: show it, declare it, compare it with what exists",
    ),
    "grants": Later(
        "messaging.mq.grants", "print the least rights that each kind of process needs, as rabbitmqctl lines or JSON"
    ),
    "asyncapi": Later(
        "messaging.mq.asyncapi", "print an AsyncAPI 3 document of the events, consumers and procedures, as JSON"
    ),
}


class Command(CommandWithExamples):
    help = "RabbitMQ by hand: messages, what exists, what this project declares, and who may do what."
    examples = EXAMPLES
    # The other checks import every page of the project.
    requires_system_checks = ["messaging"]

    def add_arguments(self, parser: CommandParser) -> None:
        add_subcommands(parser, SUBCOMMANDS)

    def handle(self, *args: Any, **options: Any) -> None:
        with quiet_when_the_reader_leaves(), told_when_interrupted(), quiet_log(unless=options["verbosity"] > 1):
            options["run"](self, options)
