"""What people and housekeeping do to messages, all at once: each has its effects once, and each person is told."""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from messaging import conf, consumers
from messaging.actions.cancel import cancel
from messaging.actions.prune import prune
from messaging.actions.publish_now import publish_now
from messaging.actions.replay import replay
from messaging.actions.selection import Selection
from messaging.message import Delivery
from messaging.models import InboxMessage, OperatorAction, OutboxMessage
from messaging.reconcile import empty_queues, lost
from messaging.reconcile.reconcile import reconcile
from orders.models import Product, TextMessage
from tests.faults.shop import place
from tests.support.consuming import Noted, a_consumer, look_after, note, notes, registered
from tests.support.missing_orders import make_orders_missing, restore_orders
from tests.support.repeats import is_full, repeats
from tests.support.running import IMPATIENT, InThread, add, at_once, running_relay, running_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)

REPLAY = "/admin/messaging/inboxmessage/operate/replay/"


def signed_in(name: str) -> Client:
    """A member of the staff, with a session of their own."""
    client = Client()
    client.force_login(User.objects.create_superuser(name))
    return client


@pytest.mark.both_databases
def test_two_people_who_replay_a_dead_message_at_once_replay_it_once_and_both_are_told(
    vhost: str, product: Product
) -> None:
    """F74."""
    tries = repeats(short=5)
    for _ in tries:
        place(product)
    make_orders_missing()
    with running_relay(), running_worker(*consumers.named(["sms"])):
        eventually(lambda: InboxMessage.objects.filter(state="dead").count() == len(tries), 120)
        restore_orders()
        people = [signed_in(name) for name in ("ann", "bob")]
        for row in InboxMessage.objects.all():
            for person in people:
                assert "Replay 1" in person.post(REPLAY, {"row": row.pk}).content.decode()
            form = {"row": row.pk, "confirmed": "yes"}
            answers = at_once(*(partial(person.post, REPLAY, form, follow=True) for person in people))
            # The consumer may have been quicker than the second of them.
            words = re.compile(r">(1 replayed\. [^<]*|Nothing was done: 1 already (?:replayed|handled)\.)<")
            told = [words.findall(answer.content.decode()) for answer in answers]
            assert sorted(len(said) for said in told) == [1, 1]
            assert sorted(said[0].startswith("1 replayed") for said in told) == [False, True]
        eventually(lambda: not InboxMessage.objects.exclude(state="handled").exists(), 60)

    assert OutboxMessage.objects.filter(origin="replay").count() == len(tries)
    assert len(set(TextMessage.objects.values_list("order"))) == TextMessage.objects.count() == len(tries)
    assert InboxMessage.objects.filter(handled_at__isnull=False).count() == len(tries)
    replays = OperatorAction.objects.filter(action="replay")
    assert Counter(replays.values_list("changed", flat=True)) == {1: len(tries), 0: len(tries)}
    assert Counter(replays.values_list("actor", flat=True)) == {"ann": len(tries), "bob": len(tries)}


@pytest.mark.both_databases
def test_upkeep_relays_replay_reconcile_and_pruning_all_at_once_lose_and_double_nothing(
    vhost: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F75."""
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    monkeypatch.setattr(conf, "RECONCILE_INTERVAL", 0.5)
    # So little that whatever is slow is called lost, and sent again though it is not.
    for module in (lost, empty_queues):
        monkeypatch.setattr(module, "patience", lambda consumer: timedelta(seconds=0.2))
    dice, healed = random.Random(75), threading.Event()

    def unreliable(event: Noted, delivery: Delivery) -> None:
        note(event.text)
        if not healed.is_set() and dice.random() < 0.6:
            raise ValueError("most of them fail")

    consumer = a_consumer(unreliable)
    over = threading.Event()

    def looping(function: Callable[[], Any]) -> InThread:
        def loop() -> None:
            while not over.is_set():
                function()
                over.wait(0.25)  # on SQLite the others want to write, too

        return InThread(loop, "housekeeping")

    everything = Selection()
    seconds = 60 if is_full() else 3
    with registered(consumer), running_relay(), running_relay(), running_worker(consumer):
        loops = [
            looping(lambda: replay.run(everything, by="ann")),
            looping(lambda: replay.run(everything, by="bob")),
            looping(lambda: publish_now.run(everything, by="ann")),
            looping(lambda: look_after([consumer])),
            looping(prune.run),
            looping(lambda: reconcile(repair=True, by="cron")),
        ]
        texts: list[str] = []
        until = time.monotonic() + seconds
        # On a busy machine it takes longer until a message is dead, and replayed.
        while time.monotonic() < until or (not _something_was_replayed() and time.monotonic() < until + 60):
            text = f"m{len(texts):04}"
            add(Noted(text=text), ordering_key=f"key-{len(texts) % 5}" if len(texts) % 2 else "")
            texts.append(text)
            time.sleep(0.05)
        healed.set()
        eventually(lambda: InboxMessage.objects.filter(state="handled").count() == len(texts), 90)
        over.set()
        for loop in loops:
            loop.join(60)
        eventually(lambda: not OutboxMessage.objects.exclude(state="published").exists(), 30)

    assert _something_was_replayed(), "nothing was there to be replayed"
    assert Counter(text for text in texts for _ in range(notes(text))) == Counter(texts)
    assert InboxMessage.objects.count() == len(texts)
    assert InboxMessage.objects.filter(handled_at__isnull=False).count() == len(texts)


def _something_was_replayed() -> bool:
    return OperatorAction.objects.filter(action="replay", changed__gt=0).exists()


def test_a_cancel_at_the_very_moment_of_publishing_leaves_each_message_published_or_cancelled(
    vhost: str, settings: Any
) -> None:
    """F75, for waiting messages."""
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    consumer = a_consumer(name="notes")
    texts = [f"m{number:03}" for number in repeats(short=30, full=600)]
    with registered(consumer), running_worker(consumer), running_relay():
        for text in texts:
            add(Noted(text=text))
            cancel.run(Selection(), by="ann")
        cancelled = OutboxMessage.objects.filter(state="cancelled").count()
        eventually(lambda: InboxMessage.objects.count() == len(texts) - cancelled, 60)
        eventually(lambda: not OutboxMessage.objects.filter(state="pending").exists(), 30)
    assert notes() == len(texts) - cancelled
    assert OutboxMessage.objects.filter(state="published").count() == len(texts) - cancelled
    assert {bytes(row.body) for row in OutboxMessage.objects.filter(state="cancelled")}.isdisjoint(
        {Noted(text=text).encode() for text in texts if notes(text)}
    )
