"""What the naive consumer leaves behind."""

from typing import ClassVar

from django.db import models


class Handling(models.Model):
    """One run of the handler. Nothing keeps it from being there twice, but the inbox."""

    message_id = models.CharField(max_length=255)
    order_number = models.CharField(max_length=12)

    objects: ClassVar[models.Manager["Handling"]] = models.Manager()

    class Meta:
        # Who only judges need not install the app.
        app_label = "naive"

    def __str__(self) -> str:
        return f"{self.order_number} {self.message_id}"
