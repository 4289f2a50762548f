"""`manage.py mq …`: RabbitMQ by hand. The sub-commands are in `messaging/mq/`."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from messaging.management.arguments import CommandWithExamples, add_subcommands
from messaging.management.errors import told_when_interrupted
from messaging.management.tables import quiet_when_the_reader_leaves
from messaging.management.terminal_log import quiet_log
from messaging.mq import asyncapi, call, grants, listen, lists, peek, publish, purge, status, topology

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
    "publish": publish,
    "listen": listen,
    "call": call,
    "peek": peek,
    "purge": purge,
    "queues": lists.Queues(),
    "exchanges": lists.Exchanges(),
    "bindings": lists.Bindings(),
    "consumers": lists.Consumers(),
    "connections": lists.Connections(),
    "status": status,
    "topology": topology,
    "grants": grants,
    "asyncapi": asyncapi,
}


class Command(CommandWithExamples):
    help = "RabbitMQ by hand: messages, what exists, what this project declares, and who may do what."
    examples = EXAMPLES

    def add_arguments(self, parser: CommandParser) -> None:
        add_subcommands(parser, SUBCOMMANDS)

    def handle(self, *args: Any, **options: Any) -> None:
        with quiet_when_the_reader_leaves(), told_when_interrupted(), quiet_log(unless=options["verbosity"] > 1):
            options["run"](self, options)
