"""The optional app `messaging.mq`: RabbitMQ by hand, as `manage.py mq …`."""

from django.apps import AppConfig


class MqConfig(AppConfig):
    name = "messaging.mq"
    label = "mq"
    verbose_name = "RabbitMQ by hand"
