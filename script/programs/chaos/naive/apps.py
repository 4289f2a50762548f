"""The app of the naive consumer. It also shortens the delays between attempts, so that rest comes soon."""

from dataclasses import replace
from datetime import timedelta

from django.apps import AppConfig

#: For all consumers and effects. The shop's own policies wait for minutes, and then for hours.
FIRST_REST, LONGEST_REST, ATTEMPTS = timedelta(seconds=1), timedelta(seconds=5), 40


class NaiveConfig(AppConfig):
    """Comes after `messaging`, which has found every consumer and effect by then."""

    name = "script.programs.chaos.naive"

    def ready(self) -> None:
        """Replace each retry policy by one with short delays."""
        from messaging import consumers, effects
        from messaging.retry import RetryPolicy
        from orders import effects as texts

        hasty = RetryPolicy(max_attempts=ATTEMPTS, first_delay=FIRST_REST, max_delay=LONGEST_REST)
        for consumer in consumers.registered():
            consumers.registry.add(replace(consumer, retry=hasty))
        for kind in effects.registered():
            effects.registry.add(replace(kind, retry=hasty))
        texts.RETRY = hasty
