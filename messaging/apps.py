"""The app's start: configuration is read and consumers are registered."""

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class MessagingConfig(AppConfig):
    name = "messaging"
    verbose_name = "Messaging"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Read `settings.MESSAGING`, so that a wrong value fails here by name, and find every app's
        `events`, `effects`, `consumers` and `procedures` modules.

        Raises ImproperlyConfigured for a wrong value, and in a server for surroundings that are not supported; a
        command of Django's has those from its checks."""
        from messaging import checks, conf, surroundings  # noqa: F401  (`checks` registers itself)
        from messaging.relay import thread as relay_thread

        conf.get()
        if not surroundings.are_checked():
            surroundings.require()
        relay_thread.install()
        autodiscover_modules("events", "effects", "consumers", "procedures")
