"""Arrival: a message as it arrived, with what is needed to settle it."""

from __future__ import annotations

from dataclasses import dataclass

import pika
from pika import spec

from messaging.broker.properties import from_pika, short_text
from messaging.message import Message


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that arrived and is not acknowledged yet.

    `channel` numbers the channels of a subscription, over all its connections: a tag is valid only on its own channel.
    """

    queue: str
    message: Message
    tag: int
    channel: int
    redelivered: bool
    exchange: str
    routing_key: str


def arrival_of(
    queue: str,
    channel: int,
    method: spec.Basic.Deliver | spec.Basic.GetOk,
    properties: pika.BasicProperties,
    body: bytes,
) -> Arrival:
    """Return what pika hands over as an Arrival."""
    return Arrival(
        queue=queue,
        message=from_pika(properties, body),
        tag=method.delivery_tag,
        channel=channel,
        redelivered=method.redelivered,
        exchange=short_text(method.exchange),
        routing_key=short_text(method.routing_key),
    )
