"""The lessons, as data: what each shows, the line for each terminal, and what these lines make on the broker.

Names and arguments are those of today's RabbitMQ tutorials, so that their programs, in any language, can stand in for a
line. Programs of the older tutorials can too if they run first: an existing queue is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Line:
    """What is typed into one terminal, after `manage.py`."""

    terminal: int
    command: str

    def __str__(self) -> str:
        return f"manage.py {self.command}"


@dataclass(frozen=True, slots=True)
class Made:
    """A queue or an exchange that the lines declare."""

    #: "queue" or "exchange".
    kind: str
    name: str
    #: How the lines declare it, and how the older tutorials do, whose queues are used as well.
    declarations: tuple[Mapping[str, Any], ...] = field(hash=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def _queue(name: str, arguments: Mapping[str, Any], *, formerly_durable: bool | None = None) -> Made:
    """Return a durable queue; the older tutorials declare some as classic ones, durable or not."""
    former = () if formerly_durable is None else ({"durable": formerly_durable},)
    return Made("queue", name, ({"durable": True, "arguments": arguments}, *former))


def _exchange(name: str, type: str) -> Made:
    """Return a transient exchange, as the tutorials declare them."""
    return Made("exchange", name, ({"exchange_type": type},))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One lesson. `lines` are in the order in which they are typed, by the names that the check uses."""

    name: str
    title: str
    shows: str
    lines: Mapping[str, Line]
    made: tuple[Made, ...]


_QUORUM = {"x-queue-type": "quorum"}
_NO_MORE_THAN_3 = {"x-max-length": 3, "x-overflow": "reject-publish"}
_THEN_EXPIRED = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "expired_offers"}
_TASKS = "task_queue --declare --queue-type quorum"
_REPORTS = "--header format=pdf --header kind=report"

HELLO = Lesson(
    name="hello",
    title="Hello World",
    shows="A message waits in a queue until a consumer takes it; sender and receiver need not run at the same time.",
    lines={
        "send": Line(1, 'mq publish "Hello World!" --queue hello --declare --queue-type quorum'),
        "look": Line(1, "mq peek hello"),
        "receive": Line(2, "mq listen hello"),
    },
    made=(_queue("hello", _QUORUM, formerly_durable=False),),
)

WORK_QUEUE = Lesson(
    name="work-queue",
    title="Work queue",
    shows="Workers share a queue, one message at a time each; what a killed worker had not finished goes to another.",
    lines={
        "slow": Line(1, f"mq listen {_TASKS} --prefetch 1 --dots 30"),
        "quick": Line(2, f"mq listen {_TASKS} --prefetch 1 --dots 0.5"),
        "send": Line(3, f'mq publish "A dot of work." --queue {_TASKS} --count 6'),
    },
    made=(_queue("task_queue", _QUORUM, formerly_durable=True),),
)

FANOUT = Lesson(
    name="fanout",
    title="Publish/subscribe",
    shows="A fanout exchange copies each message to every listener. Without a listener the message is gone, and the "
    "sender is told.",
    lines={
        "nobody": Line(
            3, 'mq publish "info: is anybody there?" --exchange logs --declare --exchange-type fanout --transient'
        ),
        "subscriber 1": Line(1, "mq listen logs --declare --type fanout --transient"),
        "subscriber 2": Line(2, "mq listen logs --declare --type fanout --transient"),
        "send": Line(3, 'mq publish "info: Hello World!" --exchange logs --declare --exchange-type fanout --transient'),
    },
    made=(_exchange("logs", "fanout"),),
)

DIRECT = Lesson(
    name="direct",
    title="Routing",
    shows="A direct exchange passes a message on to those who asked for its very key; a queue may ask for several.",
    lines={
        "all": Line(1, "mq listen direct_logs info warning error --declare --type direct --transient"),
        "errors": Line(2, "mq listen direct_logs error --declare --type direct --transient"),
        "info": Line(3, 'mq publish "All is well." --exchange direct_logs --key info'),
        "error": Line(3, 'mq publish "Run. Run. Or it will explode." --exchange direct_logs --key error'),
    },
    made=(_exchange("direct_logs", "direct"),),
)

TOPIC = Lesson(
    name="topic",
    title="Topics",
    shows="A topic exchange compares keys word by word: * is exactly one word, # any number of them.",
    lines={
        "kernel": Line(1, 'mq listen topic_logs "kern.*" --declare --type topic --transient'),
        "critical": Line(2, 'mq listen topic_logs "*.critical" "kern.#" --declare --type topic --transient'),
        "three words": Line(3, 'mq publish "Only a test" --exchange topic_logs --key kern.critical.test'),
        "two words": Line(3, 'mq publish "A critical kernel error" --exchange topic_logs --key kern.critical'),
    },
    made=(_exchange("topic_logs", "topic"),),
)

HEADERS = Lesson(
    name="headers",
    title="Headers",
    shows="A headers exchange looks at headers instead of the key: a listener wants all of its own to match, or any.",
    lines={
        "all": Line(1, f"mq listen headers_logs {_REPORTS} --match all --declare --type headers --transient"),
        "any": Line(2, f"mq listen headers_logs {_REPORTS} --match any --declare --type headers --transient"),
        "one": Line(3, 'mq publish "A drawing to print" --exchange headers_logs --header format=pdf'),
        "both": Line(3, f'mq publish "A report to print" --exchange headers_logs {_REPORTS}'),
    },
    made=(_exchange("headers_logs", "headers"),),
)

RPC = Lesson(
    name="rpc",
    title="RPC",
    shows="A question carries the name of a reply queue and a correlation id; its answer comes back there.",
    lines={
        "server": Line(1, "run_rpc_worker fib increase"),
        "fib": Line(2, "mq call fib 30"),
        "centre": Line(2, "mq call fib 10 20 30 40 50"),
        "increase": Line(2, "mq call increase 41"),
    },
    made=tuple(_queue(name, _QUORUM, formerly_durable=False) for name in ("rpc_queue", "compute_queue")),
)

CONFIRMS = Lesson(
    name="confirms",
    title="Publisher confirms",
    shows="The broker says what became of each message: confirmed, not taken because its queue is full, or returned.",
    lines={
        "fits": Line(
            1,
            'mq publish "Keep this." --queue confirms --declare --argument x-max-length=3 '
            "--argument x-overflow=reject-publish --count 3",
        ),
        "full": Line(1, 'mq publish "One too many." --queue confirms'),
        "nowhere": Line(1, 'mq publish "To nobody." --queue no_such_queue'),
    },
    made=(_queue("confirms", _NO_MORE_THAN_3),),
)

DEAD_LETTERS = Lesson(
    name="dead-letters",
    title="Dead letters",
    shows="What expires, is rejected or finds its queue full can go to another queue, with the story of its death.",
    lines={
        "undertaker": Line(1, "mq listen expired_offers --declare --json"),
        "send": Line(
            2,
            'mq publish "Today only!" --queue offers --declare --argument x-dead-letter-exchange= '
            "--argument x-dead-letter-routing-key=expired_offers --expiration 1000",
        ),
    },
    made=(_queue("expired_offers", {}), _queue("offers", _THEN_EXPIRED)),
)

LESSONS = (HELLO, WORK_QUEUE, FANOUT, DIRECT, TOPIC, HEADERS, RPC, CONFIRMS, DEAD_LETTERS)


def find(name: str) -> Lesson | None:
    """Return the lesson of that name, however it is written ("Work queue", "work_queue"); None where there is none."""
    return next((each for each in LESSONS if _plain(name) in {_plain(each.name), _plain(each.title)}), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
