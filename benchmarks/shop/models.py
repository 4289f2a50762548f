"""What an order writes, and what the handling of its event writes."""

from __future__ import annotations

from typing import ClassVar, Self

from django.db import models


class Row(models.Model):
    """What Django gives each model, for mypy: its plugin knows the models of one project alone."""

    objects: ClassVar[models.Manager[Self]]

    class Meta:
        abstract = True


class Product(Row):
    """Something to sell."""

    name = models.CharField(max_length=100)
    stock = models.PositiveIntegerField()


class Order(Row):
    """An order, with two lines."""

    number = models.CharField(max_length=40, unique=True)
    phone = models.CharField(max_length=20)
    total = models.DecimalField(max_digits=12, decimal_places=2)
    placed_at = models.DateTimeField(auto_now_add=True)


class Line(Row):
    """A line of an order."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE)
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField()


class Receipt(Row):
    """What a handler writes: the one insert of the ORM."""

    number = models.CharField(max_length=40)
    phone = models.CharField(max_length=20)
    text = models.TextField()


class Seen(Row):
    """The inbox that a careful user of a task queue keeps by hand."""

    message_id = models.CharField(max_length=255, unique=True)
    seen_at = models.DateTimeField(auto_now_add=True)
