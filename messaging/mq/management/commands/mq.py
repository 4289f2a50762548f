"""`manage.py mq …`: talk to the broker, and set it up. Each sub-command is a file of `messaging/mq/`."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from messaging.management.examples import CommandWithExamples, add_subcommands
from messaging.management.interrupts import told_when_interrupted
from messaging.management.tables import quiet_when_the_reader_leaves
from messaging.management.terminal_log import quiet_log
from messaging.mq import (
    asyncapi,
    bindings,
    call,
    connections,
    consumers,
    exchanges,
    grants,
    listen,
    peek,
    publish,
    purge,
    queues,
    status,
    topology,
)

EXAMPLES = """
examples:
  manage.py mq publish "Hello World!" --queue task_queue --declare    send a text to a queue, made if need be
  manage.py mq listen hello                                       print what a queue brings
  manage.py mq listen logs "orders.#" "#.error"                   print what an exchange passes on, by keys
  manage.py mq call fib 30                                        ask a procedure
  manage.py mq peek orders.sms                                    look at what waits, and leave it there
  manage.py mq queues                                             every queue, and what waits in it
  manage.py mq status --watch                                     everything on one screen, what is wrong first
  manage.py mq topology                                           what has to stand on the broker
  manage.py mq topology diff                                      where the broker stands otherwise
  manage.py mq grants                                             least rights for each kind of process
  manage.py mq asyncapi > asyncapi.json                           what is said here, for other teams and their tools
  manage.py mq publish --help                                     more about one of them

exit codes: 0 done, 1 something is not as it should be, 2 wrong arguments, 3 broker unreachable, 6 drift, or
something is wrong, 7 it did not answer in time, 130 interrupted
"""
SUBCOMMANDS = (
    publish, listen, call, peek, purge,
    queues, exchanges, bindings, consumers, connections,
    status, topology, grants, asyncapi,
)  # fmt: skip


class Command(CommandWithExamples):
    help = "Talk to the broker and set it up: messages, what has to stand on it, and who may do what there."
    examples = EXAMPLES

    def add_arguments(self, parser: CommandParser) -> None:
        add_subcommands(parser, {each.__name__.rpartition(".")[2]: each for each in SUBCOMMANDS})

    def handle(self, *args: Any, **options: Any) -> None:
        with quiet_when_the_reader_leaves(), told_when_interrupted(), quiet_log(unless=options["verbosity"] > 1):
            options["run"](self, options)
