"""Mending drift: the safe steps, in order, as commands. Nothing that is followed here loses a message of ours.

An event published while a queue was missing, deleted or not bound is in the outbox with the names of who should have
got it; `messages reconcile` compares that with the inbox. Therefore it comes after all else, twice.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from messaging import conf, consumers
from messaging.topology import desired
from messaging.topology.drift import Drift, Finding, Kind

MISSING = {Kind.MISSING_EXCHANGE, Kind.MISSING_QUEUE, Kind.MISSING_BINDING, Kind.UNROUTED_EVENT}
#: How far back is checked what has arrived: further than anybody takes to follow the steps.
SINCE = "1d"


@dataclass(frozen=True, slots=True)
class Step:
    """What to do, and why now. Without a command, a person has to do it otherwise."""

    why: str
    command: str = ""


def plan(drift: Drift) -> list[Step]:
    """Return the steps that make the broker stand as wanted; none where it does."""
    steps = [*_declaring(drift), *_taking_away(drift), *_left_to_people(drift)]
    if steps:
        steps.append(Step("See that nothing is left.", "manage.py mq topology diff"))
    return steps


def _declaring(drift: Drift) -> Iterator[Step]:
    missing = _of(drift, *MISSING)
    exchanges, queues = _of(drift, Kind.OTHER_EXCHANGE), _of(drift, Kind.OTHER_QUEUE)
    foreign = [each for each in queues if not each.is_ours and each.is_wrong]
    queues = [each for each in queues if each.is_ours]
    requests = [each for each in queues if each.name not in _declared_queues()]
    queues = [each for each in queues if each not in requests]
    yield from _running_consumers(drift)
    yield from _waking(drift)
    for each in foreign:
        yield Step(
            f"{each.said}. This project did not declare it: another application may use it. Ask its owner, or give "
            f"consumer {each.consumer or 'dead_letters'} a queue of its own: @consumer(..., queue=...). If the queue "
            f"belongs to nobody else, {_replacing(each)} makes it as wanted once it is empty.",
            f"manage.py mq bindings {shlex.quote(each.name)}",
        )
    if exchanges or queues:
        yield Step(
            "First let every process that publishes or consumes run this code: older code declares what it finds "
            "missing in its own way."
        )
    for each in exchanges:
        yield Step(
            f"{each.said}. It is not deleted while queues of other applications are bound to it: look which are, and "
            "let their owners unbind them.",
            f"manage.py mq bindings {shlex.quote(each.name)}",
        )
        yield Step(
            f"Delete exchange {each.name} and declare it as wanted. Run `manage.py mq grants` again after, if accounts "
            "have its rights: RabbitMQ 4.3 forgets topic permissions with their exchange, and then allows every key.",
            _replacing(each),
        )
    for each in queues:
        yield Step(
            f"{each.said}. Leave its consumers running, so that they empty it. Stop clients that publish to it and are "
            "not of this project: nobody else keeps what they send meanwhile.",
            f"manage.py mq queues {shlex.quote(each.name)}",
        )
        yield Step(
            f"In a moment in which no message waits in {each.name}, delete it and declare it as wanted.",
            _replacing(each),
        )
        yield Step(
            f"See that {each.name} is read again: in ready and unacked, messages come and go. RabbitMQ may keep a "
            "consumer on the old queue, if somebody declared it again too soon: restart one that gets nothing.",
            f"manage.py mq queues {shlex.quote(each.name)}",
        )
    # Only now: it ends with an error while something stands otherwise.
    if missing:
        yield Step(f"{'; '.join(each.said for each in missing)}. Declare it.", "manage.py mq topology declare")
    for each in requests:
        yield Step(f"{each.said}. Stop every RPC worker. Callers are told meanwhile that there is none, or time out.")
        yield Step(
            f"If it was declared auto-delete, {each.name} went with the last one (404). Else delete it, unless "
            "somebody uses it still (400).",
            _delete(drift, "queues", each.name, if_unused=True),
        )
        yield Step("Start them again: they declare it as wanted.", "manage.py run_rpc_worker")
    if changed := [*exchanges, *queues, *missing, *_of(drift, Kind.SILENT_QUEUE)]:
        yield from _reconciling(changed)


def _running_consumers(drift: Drift) -> Iterator[Step]:
    for each in _of(drift, Kind.UNCONSUMED_QUEUE):
        if each.is_wrong:
            yield Step(f"{each.said}. Keep it running.", f"manage.py run_consumer {each.consumer or '--all'}")


def _waking(drift: Drift) -> Iterator[Step]:
    silent = _of(drift, Kind.SILENT_QUEUE)
    if not silent:
        return
    yield Step(
        f"{'; '.join(each.said for each in silent)}. Run `rabbitmqctl stop_app` and `rabbitmqctl start_app` on the "
        "RabbitMQ node that holds it, then look again. What follows is for a queue that still does not answer.",
        "manage.py mq topology diff",
    )
    for each in silent:
        lost = "`messages reconcile` sends it again" if each.consumer else "it is lost"
        yield Step(
            f"Delete {each.name}: nobody can read what is in it, and {lost}.",
            _delete(drift, "queues", each.name),
        )
    yield Step("Declare again what was deleted.", "manage.py mq topology declare")


def _replacing(finding: Finding) -> str:
    return f"manage.py mq topology declare --replace {shlex.quote(finding.name)}"


def _reconciling(changed: Sequence[Finding]) -> Iterator[Step]:
    names = {each.consumer for each in changed}
    # What is about an exchange or an event may concern every consumer, and so may the queue of dead letters.
    chosen = "".join(f" --consumer {name}" for name in sorted(names)) if "" not in names else ""
    command = f"manage.py messages reconcile --repair --since {SINCE}{chosen}"
    yield Step("Send again what was missed meanwhile. The first look notes which queues are empty ...", command)
    yield Step(
        f"... and the second, at least {conf.get().reconcile_after:g} s later (RECONCILE_AFTER), sends. Repeat it "
        "until it says nothing that cannot be said yet. Celery beat does the same each minute, where it runs.",
        command,
    )


def _taking_away(drift: Drift) -> Iterator[Step]:
    # What is deleted and declared anew has lost them already.
    replaced = {each.name for each in _of(drift, Kind.OTHER_EXCHANGE, Kind.OTHER_QUEUE)}
    for each in _of(drift, Kind.EXTRA_BINDING):
        if each.binding is not None and replaced.isdisjoint({each.binding.source, each.binding.destination}):
            path = ("e", each.binding.source, "q", each.binding.destination, each.binding.properties_key)
            yield Step(f"{each.said}. Take it away, unless somebody needs it.", _delete(drift, "bindings", *path))
    for each in _of(drift, Kind.ABANDONED_QUEUE):
        if each.is_wrong:
            yield Step(
                f"{each.said}. Look at what is in it; does anybody need it, or run older code?",
                f"manage.py mq peek {shlex.quote(each.name)}",
            )
            yield Step(f"If not: delete {each.name}, with all that is in it.", _delete(drift, "queues", each.name))


def _delete(drift: Drift, what: str, *path: str, if_unused: bool = False) -> str:
    """Return the line that deletes it by the management API, which asks for the password. Where it is not known to be
    our broker's, the line is one to be run beside the broker: another one may have a queue of that name."""
    if drift.address is None:
        words = ["rabbitmqctl", "delete_queue", "-p", conf.get().brokers[0].vhost, path[-1]]
        return shlex.join([*words, "--if-unused"] if if_unused else words)
    where = "/".join(quote(each, safe="") for each in (drift.address.vhost, *path))
    target = f"{drift.address}/api/{what}/{where}" + ("?if-unused=true" if if_unused else "")
    return shlex.join(["curl", "-fsS", "-u", drift.address.user, "-X", "DELETE", target])


def _left_to_people(drift: Drift) -> Iterator[Step]:
    for each in _of(drift, Kind.HARMFUL_POLICY, Kind.UNWANTED_EVENT):
        yield Step(f"{each.said}. {each.hint}")


def _declared_queues() -> set[str]:
    return {queue.name for queue in desired.topology(consumers.registered()).queues}


def _of(drift: Drift, *kinds: Kind) -> list[Finding]:
    return [finding for finding in drift.findings if finding.kind in kinds]
