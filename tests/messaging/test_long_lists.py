"""Lists of millions of rows: what a page asks the database, what it says of what it did not look at, and that every row
can be reached."""

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from messaging.admin import long_lists, searching
from messaging.models import Effect, InboxMessage, OperatorAction, OutboxMessage
from tests.messaging.test_admin import INBOX, OUTBOX, inbox, outbox, rows

pytestmark = pytest.mark.django_db

EFFECTS, AUDIT = "/admin/messaging/effect/", "/admin/messaging/operatoraction/"
LISTS = [OUTBOX, INBOX, EFFECTS, AUDIT]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> int:
    """No list counts, or has on its pages, more rows than this."""
    monkeypatch.setattr(long_lists, "COUNTED", 100)
    return 100


def many(number: int, **columns: Any) -> None:
    OutboxMessage.objects.bulk_create(
        OutboxMessage(message_id=f"m-{each}", type="order.placed", subject=f"W-{each}", body=b"{}",
                      **{"state": "published", **columns})
        for each in range(number)
    )  # fmt: skip


def analyze() -> None:
    """PostgreSQL counts what is there now. The figure outlives the transaction of a test."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE messaging_outboxmessage")


def text(client: Client, address: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", "", unescape(client.get(address).content.decode())))


# --- What a page asks --------------------------------------------------------------------------------------


QUERIES = ["", "?p=3", "?q=W-1", "?q=W-nothing", "?q=~placed", "?since=10min", "?since=30d", "?state__exact=published",
           "?o=1", "?id__lt=50"]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("address", LISTS)
def test_no_page_of_a_list_counts_or_sorts_a_whole_table(admin_client: Client, address: str, query: str) -> None:
    message = inbox()
    outbox()
    Effect.objects.create(inbox_message=message, consumer="sms", message_id="m-1", name="text")
    OperatorAction.objects.create(actor="ann", action="replay")

    with CaptureQueriesContext(
        connection,
    ) as asked:
        assert admin_client.get(f"{address}{query}", follow=True).status_code == 200

    table = {OUTBOX: OutboxMessage, INBOX: InboxMessage, EFFECTS: Effect, AUDIT: OperatorAction}[address]
    of_the_table = [each["sql"] for each in asked if f'FROM "{table._meta.db_table}"' in each["sql"]]
    assert of_the_table
    for sql in of_the_table:
        # Bounded, or at most a page's rows by their ids.
        assert " LIMIT " in sql or f'"{table._meta.db_table}"."id" IN (' in sql
        for order in re.findall(r"ORDER BY (.*?)(?: LIMIT|\)|$)", sql):
            assert re.fullmatch(r'(1|"\w+"."id") DESC', order)


@pytest.mark.parametrize("query", ["", "?state__exact=handled"])
def test_effects_and_attempts_are_looked_up_for_the_rows_of_a_page_alone(admin_client: Client, query: str) -> None:
    """The list shows the trouble of each row. For more rows PostgreSQL would gather all attempts there are."""
    inbox()
    with CaptureQueriesContext(connection) as asked:
        admin_client.get(f"{INBOX}{query}")
    (page,) = [each["sql"] for each in asked if "messaging_effect" in each["sql"]]
    assert '"messaging_inboxmessage"."id" IN (' in page
    assert "messaging_deliveryattempt" in page


# --- What a page says --------------------------------------------------------------------------------------


def test_a_list_that_is_counted_to_its_end_says_how_many_there_are(admin_client: Client, counted: int) -> None:
    many(counted)
    assert f" {counted} outbox messages " in text(admin_client, OUTBOX)
    assert f" {counted} results (Show all) " in text(admin_client, f"{OUTBOX}?state__exact=published")


def test_a_longer_one_says_that_there_are_more_and_what_its_pages_hold(admin_client: Client, counted: int) -> None:
    analyze()  # no rows
    many(counted + 1)
    for address in (OUTBOX, f"{OUTBOX}?state__exact=published"):
        shown = text(admin_client, address)
        assert f" more than {counted} outbox messages " in shown
        assert f" These pages show the newest {counted}. The last page leads to older ones. " in shown
    assert "Select all outbox messages (more than 100)" in text(admin_client, OUTBOX)


@pytest.mark.only_on("postgresql")
def test_postgresql_knows_about_how_many_rows_a_table_has(admin_client: Client, counted: int) -> None:
    many(1234)
    analyze()

    assert " about 1,200 outbox messages " in text(admin_client, OUTBOX)
    assert " more than 100 outbox messages " in text(admin_client, f"{OUTBOX}?state__exact=published")


def test_a_search_says_what_it_looked_at(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    many(5)
    monkeypatch.setattr(searching, "AT_ONCE", 3)
    monkeypatch.setattr(searching, "ASKED_FOR", 4)

    def found(query: str) -> list[str]:
        response = admin_client.get(f"{OUTBOX}?q={query}")
        return [row.subject for row in response.context["cl"].result_list]

    assert found("W-1") == found("m-1") == ["W-1"]
    assert found("w-") == ["W-4", "W-3", "W-2", "W-1", "W-0"]
    assert found("placed") == ["W-4", "W-3", "W-2"]
    assert found("~placed") == ["W-4", "W-3", "W-2", "W-1"]
    assert found("~placed W-3") == ["W-3"]
    assert found("W-9") == found("~W-9") == []
    assert "begin with it" not in text(admin_client, f"{OUTBOX}?q=W-1")
    assert "These order numbers or message ids begin with it." in text(admin_client, f"{OUTBOX}?q=w-")
    page = admin_client.get(f"{OUTBOX}?q=placed&state__exact=published").content.decode()
    assert searching.How.WORDS_AT_ONCE.value in page
    assert 'href="?q=~placed&amp;state__exact=published"' in page.replace("%7E", "~")
    assert searching.How.WORDS.value in admin_client.get(f"{OUTBOX}?q=~placed").content.decode()


def test_effects_are_found_by_the_beginning_of_their_order_number_or_message_id(admin_client: Client) -> None:
    message = inbox(subject="W-12", message_id="m-12")
    effect = Effect.objects.create(inbox_message=message, consumer="sms", message_id="m-12", name="text")

    for search in ("W-12", "w-1", "m-12", "m-1", "~text sms", "text"):
        assert rows(admin_client, f"{EFFECTS}?q={search}") == {effect.pk}
    assert rows(admin_client, f"{EFFECTS}?q=W-2") == set()


# --- Every row can be reached ------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "state__exact=published"])
def test_the_pages_and_the_links_to_older_ones_lead_past_every_row_once(
    admin_client: Client, counted: int, query: str
) -> None:
    many(250)
    seen: list[int] = []
    address = f"{OUTBOX}?{query}"
    while address:
        changelist = admin_client.get(address).context["cl"]
        seen += [row.pk for row in changelist.result_list]
        more = changelist.page_num < changelist.paginator.num_pages
        address = f"{OUTBOX}{changelist.get_query_string({'p': changelist.page_num + 1}) if more else changelist.older}"
        address = address if address != OUTBOX else ""
    assert seen == list(OutboxMessage.objects.order_by("-pk").values_list("pk", flat=True))


def test_a_filter_or_search_among_older_rows_is_about_all_rows(admin_client: Client) -> None:
    many(5)
    page = admin_client.get(f"{OUTBOX}?id__lt={OutboxMessage.objects.latest('pk').pk}&state__exact=published")
    shown = page.content.decode()

    assert len(page.context["cl"].result_list) == 4
    assert 'href="?state__exact=pending"' in shown
    assert 'name="state__exact" value="published"' in shown
    assert 'name="id__lt"' not in shown
    assert "id__lt" not in "".join(re.findall(r'href="(\?[^"]*)"', shown))


def test_a_page_beyond_the_last_is_the_last(admin_client: Client, counted: int) -> None:
    many(counted + 1)
    assert admin_client.get(f"{OUTBOX}?p=1000").context["cl"].page_num == 2
    assert len(rows(admin_client, f"{OUTBOX}?p=1000")) == 50


def test_all_of_a_short_list_is_on_one_page_if_asked_for(admin_client: Client) -> None:
    many(120)
    assert len(rows(admin_client, f"{OUTBOX}?all=&state__exact=published")) == 120


def test_an_action_on_all_that_match_is_asked_for_the_first_of_them(admin_client: Client, counted: int) -> None:
    many(counted + 20, state="pending", publish_at=now() + timedelta(days=1))
    chosen = {
        "action": "cancel",
        "select_across": "1",
        "_selected_action": [OutboxMessage.objects.first().pk],
        "index": 0,
    }  # type: ignore[union-attr]

    response = admin_client.post(f"{OUTBOX}?state__exact=pending", chosen)

    assert len(response.context["rows"]) == counted + 20
