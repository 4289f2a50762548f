"""The app's start: read the configuration, register checks and declarations."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules


class MessagingConfig(AppConfig):
    name = "messaging"
    verbose_name = "Messaging"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Read `settings.MESSAGING`, and import every app's `events`, `effects`, `consumers` and `procedures`.

        Have `migrate` create the groups of the admin.

        Raises ImproperlyConfigured for a wrong value, and in a server also for an environment that is not supported;
        in a management command Django's checks refuse that.
        """
        from messaging import conf, processes
        from messaging.checks import environment
        from messaging.models import groups
        from messaging.models.counts import counting
        from messaging.relay import thread as relay_thread

        conf.get()
        if not environment.is_checked_by_django():
            environment.require_supported()
        relay_thread.install()
        processes.in_each_child(counting.reset)
        post_migrate.connect(groups.create_once, sender=self)
        autodiscover_modules("events", "effects", "consumers", "procedures")
