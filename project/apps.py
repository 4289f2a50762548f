"""Django's admin, as this project runs it."""

from typing import Any

from django.contrib.admin import autodiscover
from django.contrib.admin.apps import SimpleAdminConfig
from django.contrib.admin.checks import check_admin_app, check_dependencies
from django.core import checks


class AdminConfig(SimpleAdminConfig):
    """The admin, whose pages are imported with the addresses (`project/urls.py`), and for the checks of them.

    Commands show no pages: importing them at every start would take a tenth of it.
    """

    def ready(self) -> None:
        """Register the admin's checks."""
        checks.register(check_dependencies, checks.Tags.admin)
        checks.register(_check_pages, checks.Tags.admin)


def _check_pages(app_configs: Any, **kwargs: Any) -> list[Any]:
    autodiscover()
    return list(check_admin_app(app_configs, **kwargs))
