"""The message pages in other projects' admins: other languages, formats, sites and users."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.urls import path

from messaging.admin import EffectAdmin, InboxMessageAdmin, OperatorActionAdmin, OutboxMessageAdmin
from messaging.models import Effect, InboxMessage, OperatorAction, OutboxMessage
from tests.support.consuming import Noted, a_consumer, registered

#: Languages, formats and sites do not depend on the database.
pytestmark = [pytest.mark.django_db, pytest.mark.only_on("sqlite")]

#: Written as "1,234,567" in an address it would find no row.
ID = 1_234_567
FORMATS = [
    {"LANGUAGE_CODE": "de", "USE_THOUSAND_SEPARATOR": True},
    {"LANGUAGE_CODE": "fr", "USE_THOUSAND_SEPARATOR": True, "USE_TZ": False, "TIME_ZONE": "Europe/Paris"},
    {"USE_I18N": False, "USE_THOUSAND_SEPARATOR": True},
]

#: Two sites, neither called "admin"; the first has nothing of ours.
front, back = admin.AdminSite(name="front"), admin.AdminSite(name="back")
back.register(OutboxMessage, OutboxMessageAdmin)
back.register(InboxMessage, InboxMessageAdmin)
back.register(Effect, EffectAdmin)
back.register(OperatorAction, OperatorActionAdmin)
urlpatterns = [path("front/", front.urls), path("back/", back.urls)]


@pytest.fixture
def client() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root", "", "x"))
    return client


@pytest.fixture
def dead() -> InboxMessage:
    OutboxMessage.objects.create(
        id=ID, message_id="m-1", type="test.noted", subject="n-1", routing_key="test.noted", body=b"{}",
        state="published", published_at=datetime.now(UTC), expected_consumers=["notes"],
    )  # fmt: skip
    row = InboxMessage.objects.create(
        id=ID, message_id="m-1", consumer="notes", type="test.noted", subject="n-1", state="dead", reason="bad",
        body=Noted(text="x").encode(), attempt=1,
    )  # fmt: skip
    Effect.objects.create(id=ID, inbox_message=row, consumer="notes", message_id="m-1", name="text", state="unknown")
    return row


PAGES = [
    *(f"{name}/{rest}" for name in ("outboxmessage", "inboxmessage", "effect") for rest in ("", f"{ID}/change/")),
    "outboxmessage/story/?subject=n-1",
    "operatoraction/",
    "inboxmessage/?q=n-1",
]


def replay(client: Client, root: str) -> Any:
    """Press "Replay" on the page of the dead message, and confirm, as a browser would."""
    page = client.get(f"{root}inboxmessage/{ID}/change/").content.decode()
    action = re.search(r'formaction="([^"]*operate/replay/[^"]*)"[^>]* name="row" value="([^"]+)"', page, re.DOTALL)
    assert action is not None
    asked = client.post(action[1], {"row": action[2]}).content.decode()
    rows = re.findall(r'name="row" value="([^"]+)"', asked)
    return client.post(action[1], {"row": rows, "confirmed": "1"})


@pytest.mark.parametrize("formats", FORMATS, ids=lambda formats: ",".join(map(str, formats.values())))
def test_rows_are_found_and_replayed_whatever_numbers_look_like(
    formats: dict[str, Any], client: Client, dead: InboxMessage, settings: Any
) -> None:
    for name, value in formats.items():
        setattr(settings, name, value)
    for page in PAGES:
        answer = client.get(f"/admin/messaging/{page}")
        assert answer.status_code == 200, page
        ids = re.findall(r'(?:href|action)="[^"]*?/(\d[\d.,  ]*)/', answer.content.decode())
        assert all(each.isascii() and each.isdigit() for each in ids), page
    with registered(a_consumer()):
        assert replay(client, "/admin/messaging/").status_code == 302
    dead.refresh_from_db()
    assert dead.state == "retrying"


@pytest.mark.urls("tests.messaging.test_admin_of_others")
def test_pages_are_linked_on_a_site_of_another_name(client: Client, dead: InboxMessage) -> None:
    for page in PAGES:
        assert client.get(f"/back/messaging/{page}").status_code == 200, page
    with registered(a_consumer()):
        assert replay(client, "/back/messaging/").headers["Location"].startswith("/back/messaging/")
    dead.refresh_from_db()
    assert dead.state == "retrying"
