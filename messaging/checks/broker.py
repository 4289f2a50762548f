"""The broker: its account, its delivery limit, and what exists on it compared with the declarations."""

from __future__ import annotations

from collections.abc import Iterator

from django.conf import settings
from django.core.checks import CheckMessage, Info, Warning

from messaging import conf
from messaging.broker.management_http import ManagementUnavailable
from messaging.exceptions import BrokerUnavailable
from messaging.topology import drift
from messaging.topology.findings import Finding, Kind
from messaging.validation.addresses import GUEST, BrokerAddress

#: Each lost connection and each deploy can cost a message one of its deliveries.
LOWEST_DELIVERY_LIMIT = 10


def check_delivery_limit() -> list[CheckMessage]:
    """Report a limit at which the broker dead-letters messages that no consumer had a fair chance to handle."""
    limit = conf.get().delivery_limit
    if conf.get().queue_type != "quorum" or limit >= LOWEST_DELIVERY_LIMIT:
        return []
    hint = (
        f"Set it to {LOWEST_DELIVERY_LIMIT} or more (default 1000). Retries do not count: each is a new message to "
        "RabbitMQ. Queues that exist keep their limit until they are deleted."
    )
    text = (
        f"MESSAGING['DELIVERY_LIMIT'] is {limit}: after so many lost connections or restarts RabbitMQ dead-letters a "
        "message that nothing is wrong with."
    )
    return [Warning(text, hint=hint, id="messaging.W003")]


def check_unconsumed_events() -> list[CheckMessage]:
    """Report events without a consumer: the broker returns them, again and again."""
    return [_warning(finding) for finding in drift.unwanted_events()]


def check_topology() -> list[CheckMessage]:
    """Report where the broker differs from the declarations. A broker that is unreachable fails nothing."""
    try:
        return [_warning(each) for each in drift.look() if each.is_wrong and each.kind is not Kind.UNWANTED_EVENT]
    except ManagementUnavailable as error:
        return [
            Info(
                f"The broker could not be compared with the declarations, which needs its management API: {error}.",
                hint="Enable the plugin rabbitmq_management and give this user the tag `management`, or silence this.",
                id="messaging.I001",
            )
        ]
    except BrokerUnavailable as error:
        return [
            Warning(
                f"The broker could not be compared with the declarations: {error}.",
                hint="Run `manage.py mq topology diff` where it can be reached.",
                id="messaging.W016",
            )
        ]


def _warning(finding: Finding) -> CheckMessage:
    return Warning(f"{finding.text[0].upper()}{finding.text[1:]}.", hint=finding.hint, id=finding.kind.value)


def check_broker_account() -> list[CheckMessage]:
    """Report a production that uses the broker's default account or vhost."""
    if settings.DEBUG:
        return []
    return [message for broker in conf.get().brokers for message in _account_problems(broker)]


def _account_problems(broker: BrokerAddress) -> Iterator[CheckMessage]:
    if broker.user == GUEST:
        yield Warning(
            f"The user at the broker {broker.host} is guest, whose password everybody knows.",
            hint="Make a user with `rabbitmqctl add_user` and name it in AMQP_URL; then delete guest.",
            id="messaging.W004",
        )
    if broker.vhost == "/":
        yield Warning(
            f'The vhost at the broker {broker.host} is "/", where others may have queues and policies.',
            hint="Make one with `rabbitmqctl add_vhost` and put its name at the end of AMQP_URL.",
            id="messaging.W005",
        )
