"""Three groups of `django.contrib.auth` for the people who use the admin: who reads, who operates, who administers.

`migrate` creates them once, together with the migration below, as other tools bring their first rows. After that they
belong to the project: no later `migrate` changes or creates one, whatever the project has added, removed, renamed or
deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.apps import AppConfig
from django.apps import apps as installed_apps
from django.apps.registry import Apps
from django.db import router, transaction

#: The migration that brings the groups.
MIGRATION = "0016_groups"
VIEWER = "Messaging viewer"
OPERATOR = "Messaging operator"
ADMINISTRATOR = "Messaging administrator"
#: What an operator does may be corrected later: no message is lost by it.
_OPERATES = ("replay_message", "settle_effect")
#: What cannot be undone, and the sight of personal values.
_ADMINISTERS = ("cancel_message", "discard_message", "view_payload")


def create_once(
    sender: AppConfig, *, using: str, plan: Iterable[tuple[Any, bool]] = (), apps: Apps = installed_apps, **_: Any
) -> None:
    """Create the groups in the database `using` if this run of `migrate` applied MIGRATION there.

    A receiver of `post_migrate`: before that the permissions do not exist.
    """
    if any((each.app_label, each.name) == (sender.label, MIGRATION) and not undone for each, undone in plan):
        create(sender, using, apps)


def create(app: AppConfig, using: str, apps: Apps = installed_apps) -> None:
    """Create the groups that do not exist, with their permissions. Groups with such a name are left as they are.

    Does nothing where `django.contrib.auth` is not installed, not migrated, or in another database.
    """
    try:
        group_model, permission_model = apps.get_model("auth", "Group"), apps.get_model("auth", "Permission")
    except LookupError:
        return
    if not router.allow_migrate_model(using, group_model):
        return
    # Django does so for each app in turn. This app may come before `django.contrib.auth`.
    from django.contrib.auth.management import create_permissions

    create_permissions(app, verbosity=0, using=using, apps=apps)
    ours = permission_model._default_manager.using(using).filter(content_type__app_label=app.label)
    with transaction.atomic(using=using):
        for name, codenames in _permissions(app):
            group, is_new = group_model._default_manager.using(using).get_or_create(name=name)
            if is_new:
                group.permissions.set(ours.filter(codename__in=codenames))


def _permissions(app: AppConfig) -> Iterator[tuple[str, set[str]]]:
    """Yield the name of each group and the codenames of its permissions."""
    views = {f"view_{model._meta.model_name}" for model in app.get_models()}
    yield VIEWER, views
    yield OPERATOR, {*views, *_OPERATES}
    yield ADMINISTRATOR, {*views, *_OPERATES, *_ADMINISTERS}
