"""The records of the naive consumer."""

from typing import ClassVar

from django.db import models


class Handling(models.Model):
    """One run of the handler. Only the inbox prevents a second one."""

    message_id = models.CharField(max_length=255)
    order_number = models.CharField(max_length=12)

    objects: ClassVar[models.Manager["Handling"]] = models.Manager()

    class Meta:
        # The certificate uses the model without the app.
        app_label = "naive"

    def __str__(self) -> str:
        return f"{self.order_number} {self.message_id}"
