"""The optional app `messaging.tutorial`: lessons, and the two procedures that they call."""

from django.apps import AppConfig


class TutorialConfig(AppConfig):
    name = "messaging.tutorial"
    label = "tutorial"
    verbose_name = "RabbitMQ tutorial"
