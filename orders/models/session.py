"""Sessions of visitors."""

from __future__ import annotations

from django.contrib.sessions.models import Session

from messaging.models.querysets import PrimaryQuerySet


class VisitorSession(Session):
    """Django's session, read where it is written: on a replica that lags, a cart that was just filled would be empty,
    and a session that somebody signs out of would be left."""

    objects = PrimaryQuerySet["VisitorSession"].as_manager()  # type: ignore[assignment,misc]

    class Meta:
        proxy = True
        base_manager_name = "objects"
        default_permissions = ()
