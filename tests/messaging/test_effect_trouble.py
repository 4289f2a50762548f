"""An effect that failed, fails, is overdue or unknown is seen wherever a dead message is."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils.timezone import now

from messaging.actions.selection import Selection
from messaging.history import listing
from messaging.history.effect_trouble import EffectTrouble
from messaging.models import Effect, InboxMessage
from messaging.models.failures import failure_group
from messaging.monitoring import status
from messaging.reconcile import stuck

pytestmark = pytest.mark.django_db

#: An effect of each kind of trouble, and one that is well in each other way.
TROUBLED: dict[EffectTrouble, dict[str, Any]] = {
    EffectTrouble.UNKNOWN: {"state": "unknown", "attempts": 1, "error": "the gateway answered 500"},
    EffectTrouble.FAILED: {"state": "failed", "attempts": 1, "error": "the gateway answered 400"},
    EffectTrouble.FAILING: {
        "state": "intended", "attempts": 3, "error": "the gateway answered 429", "send_at": timedelta(minutes=5),
    },
    EffectTrouble.OVERDUE: {"state": "intended", "send_at": timedelta(minutes=-5)},
}  # fmt: skip
WELL: list[dict[str, Any]] = [
    {"state": "done", "attempts": 2},
    {"state": "intended"},
    {"state": "sending", "attempts": 1, "sending_until": timedelta(seconds=10)},
    {"state": "failed", "attempts": 1, "error": "given up; settled by ann", "given_up": True},
]


def effect(number: int = 0, **columns: Any) -> Effect:
    message = InboxMessage.objects.create(consumer="sms", message_id=f"m-{number}", subject="W-1", state="handled")
    error = columns.get("error", "")
    group = failure_group("sms", "text", error) if error and not columns.get("given_up") else ""
    times = {name: now() + value for name, value in columns.items() if isinstance(value, timedelta)}
    facts = {"consumer": "sms", "message_id": message.message_id, "name": "text", "failure_group": group}
    return Effect.objects.create(**{"inbox_message": message, **facts, **columns, **times})


def wrong() -> list[str]:
    """What the status says is wrong in the database."""
    return status.wrong_in(status.boxes())


def stuck_effects() -> list[str]:
    return [finding.why for finding in stuck.stuck([])]


def listed(*arguments: str) -> list[list[str]]:
    out = StringIO()
    call_command("messages", "list", *arguments, stdout=out)
    return [line.split("\t") for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("trouble", TROUBLED)
def test_each_trouble_is_wrong_stuck_and_listed(trouble: EffectTrouble) -> None:
    row = effect(**TROUBLED[trouble])

    (said,) = wrong()
    assert said.startswith(f"effects that {trouble.words}: 1; ")
    (why,) = stuck_effects()
    assert why.startswith(f"effect text ({row.pk}): ")
    assert row.error in why
    assert [line[-1] for line in listed("--state", trouble.value)] == [str(row.pk)]
    assert status.boxes().effects[trouble].number == 1


@pytest.mark.parametrize("columns", WELL, ids=lambda columns: columns["state"])
def test_effects_without_trouble_are_not_counted(columns: dict[str, Any]) -> None:
    effect(**columns)

    assert wrong() == stuck_effects() == listed("--groups") == []


def test_groups_tell_effects_of_each_trouble_apart() -> None:
    for number, trouble in enumerate([*TROUBLED, EffectTrouble.FAILED]):
        effect(number, **TROUBLED[trouble])

    found = {(each.state, each.count, each.reason) for each in listing.failure_groups(Selection(), 50)}

    assert found == {
        ("unknown", 1, "the gateway answered 500"),
        ("failed", 2, "the gateway answered 400"),
        ("failing", 1, "the gateway answered 429"),
        ("overdue", 1, "is due, and no process carries it out: does its consumer run?"),
    }


def test_a_group_of_effects_names_its_rows() -> None:
    row = effect(**TROUBLED[EffectTrouble.FAILED])
    effect(1, state="unknown", error="no answer")

    (first, *_), (second, *_) = listed("--groups")

    assert {first, second} == {row.failure_group, failure_group("sms", "text", "no answer")}
    assert [line[-1] for line in listed("--group", row.failure_group)] == [str(row.pk)]


def test_a_group_of_effects_is_not_replayed_and_is_said_to_be_settled() -> None:
    group = effect(**TROUBLED[EffectTrouble.FAILED]).failure_group
    for options in ([], ["--dry-run"]):
        with pytest.raises(CommandError, match="is of effects, which `messages settle` has tried again"):
            call_command("messages", "replay", "--group", group, *options)


@pytest.mark.parametrize(("since", "is_wrong"), [(timedelta(seconds=5), False), (timedelta(minutes=3), True)])
def test_a_handler_that_fails_for_long_is_wrong(since: timedelta, is_wrong: bool) -> None:
    InboxMessage.objects.create(
        consumer="sms", message_id="m", state="retrying", attempt=3, reason="busy", received_at=now() - since
    )

    assert bool(wrong()) is is_wrong


def test_a_message_whose_callback_failed_is_not_just_handled(admin_client: Any) -> None:
    row = InboxMessage.objects.create(consumer="sms", message_id="m", state="handled")
    row.attempts.create(number=1, outcome="handled", error="after the commit, in send_mail: OSError: away")

    page = admin_client.get(f"/admin/messaging/inboxmessage/{row.pk}/change/").content.decode()

    assert "Do by hand what it left undone" in page
    for shown in (page, admin_client.get("/admin/messaging/inboxmessage/").content.decode()):
        assert "handled, callback failed" in shown


def test_each_trouble_is_shown_by_the_admins_lists(admin_client: Any) -> None:
    rows = {trouble: effect(number, **columns) for number, (trouble, columns) in enumerate(TROUBLED.items())}
    messages = admin_client.get("/admin/messaging/inboxmessage/").content.decode()
    for trouble, row in rows.items():
        page = admin_client.get(f"/admin/messaging/effect/?trouble={trouble.value}").content.decode()
        assert [other for other, each in rows.items() if f"/effect/{each.pk}/change/" in page] == [trouble]
        assert row.error in page
        assert f"handled, effect {trouble}" in messages

    message = admin_client.get(f"/admin/messaging/inboxmessage/{row.inbox_message.pk}/change/").content.decode()
    assert f"handled, effect {trouble}" in message


def test_an_effects_page_shows_its_attempts(admin_client: Any) -> None:
    row = effect(**TROUBLED[EffectTrouble.FAILING])
    row.failed_attempts.create(token="0" * 32, number=1, outcome="not done", error="the gateway answered 503")

    page = admin_client.get(f"/admin/messaging/effect/{row.pk}/change/").content.decode()

    assert "the gateway answered 503" in page
    assert "3 attempts failed" in page
