"""`settings.MESSAGING`, typed: the one dict this app is configured by."""

from __future__ import annotations

import os
import re
from functools import cache, cached_property
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from messaging.validation import texts, tls
from messaging.validation.addresses import BrokerAddress, broker_address

# What no project needs to change, in seconds and numbers. Tests shorten these.

#: Most rows that a relay claims in one statement.
CLAIM_BATCH = 500
#: Pause of an idle relay between two looks at the outbox.
POLL_INTERVAL = 1.0
#: How often relays and workers declare the topology again, so that what was deleted by hand is restored.
DECLARE_INTERVAL = 10.0
#: How long a stopping process may take to publish, or release, the rows that it holds.
DRAIN_TIMEOUT = 3.0
#: AMQP heartbeat, unless an address says otherwise (amqp://…?heartbeat=30).
HEARTBEAT = 15
#: Longest pause between two attempts to connect.
RECONNECT_MAX = 10.0
#: Shortest pause once every address has refused this user: more attempts could lock it out.
RECONNECT_REFUSED = 30.0
#: How long a handler or procedure may run after it got HandlerTimeout; then its process ends.
HANDLER_GRACE = 10.0
#: A lost message is sent again at most once in this time.
RECONCILE_INTERVAL = 900.0
#: Most lost messages that are sent again in one run.
RECONCILE_LIMIT = 1000

_MANAGEMENT_URL = re.compile(
    r"""(?! .* [\s'"]) https?:// (?: [^:/?\#]+ : [^/?\#]+ @ )?
    (?: \[[0-9a-f:.]+\] | [^\[\]:/?\#@]+ ) (?: : (?P<port> [0-9]{0,5} ) )? (?: / [^?\#@]* )?""",
    re.VERBOSE | re.IGNORECASE,
)


class MessagingSettings(BaseModel):
    """Every key of `settings.MESSAGING`, in capitals there, with its default. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=str.upper, allow_inf_nan=False)

    #: Addresses of the broker: amqp://user:password@host:port/vhost or amqps://… `brokers` has their parts.
    amqp_urls: tuple[str, ...]
    #: PEM files for amqps://. The CAs that may sign the broker's certificate; empty: those that this machine trusts.
    tls_ca_file: str = ""
    #: The certificate for a broker that asks for one, and its key, if it is not in the same file.
    tls_cert_file: str = ""
    tls_key_file: str = ""
    #: RabbitMQ's management API, if it is not at its usual port of the broker's host: https://host:15671. The user is
    #: the one of the broker's address unless it names its own.
    management_url: str = ""
    #: The `app_id` property of every message, and the prefix of this app's own queues.
    app_id: str = Field(default="django", min_length=1, max_length=100)
    #: The topic exchange of events that name none.
    exchange: str = Field(default="events", min_length=1, max_length=255)
    queue_type: Literal["quorum", "classic"] = "quorum"
    #: Deliveries after which the broker dead-letters a message; above every retry policy of ours.
    delivery_limit: int = Field(default=1000, ge=1)
    #: The outbox refuses larger bodies; one that arrives from elsewhere is dead.
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)

    #: Whether web and consumer processes publish what they commit; if not, `manage.py run_relay` must run.
    relay_thread: bool = True
    #: Whether logs also go to the exchange `<APP_ID>.logs`; a handler of LOGGING publishes them.
    log_to_broker: bool = False
    #: How long a row belongs to the relay that holds it.
    lease: float = Field(default=30, gt=0)
    #: How long a relay waits for the broker's confirms.
    publish_timeout: float = Field(default=10, gt=0)

    #: Deadline for connecting: TCP, TLS and the AMQP handshake together.
    connect_timeout: float = Field(default=4, gt=0)

    #: Unacknowledged deliveries that a consumer may hold, unless it says otherwise.
    prefetch: int = Field(default=50, ge=1, le=65535)
    #: How long a handler may take, unless its consumer says otherwise; then HandlerTimeout is raised in it.
    handler_timeout: float = Field(default=300, gt=0)
    #: How long a procedure may take, unless it says otherwise; then HandlerTimeout is raised in it.
    procedure_timeout: float = Field(default=30, gt=0)
    #: How long a stopping consumer or RPC server may take to finish what it has begun.
    stop_timeout: float = Field(default=25, gt=0)

    #: A message that has not arrived so long after its queue was seen empty is lost; one that waits longer is stuck.
    reconcile_after: float = Field(default=300, gt=0)

    #: Days after which published outbox rows are pruned.
    outbox_retention_days: float = Field(default=14, gt=0)
    #: Days for which the inbox remembers a handled message: longer than any replay or outbox row exists.
    inbox_retention_days: float = Field(default=90, gt=0)

    @field_validator("app_id", "exchange")
    @classmethod
    def _names_fit_amqp(cls, name: str) -> str:
        # The names of our own queues and exchanges begin with APP_ID and a dot. amq.topic exists, and is a topic
        # exchange.
        if f"{name}.".startswith(texts.RESERVED_PREFIX) and name != "amq.topic":
            raise ValueError(
                f"RabbitMQ keeps names that begin with {texts.RESERVED_PREFIX!r} for itself, such as {name!r}"
            )
        return texts.checked("the name", name, octets=texts.LONGEST)

    @field_validator("tls_ca_file", "tls_cert_file", "tls_key_file", mode="before")
    @classmethod
    def _paths_are_texts(cls, file: Any) -> Any:
        return os.fspath(file) if isinstance(file, os.PathLike) else file

    @field_validator("amqp_urls", mode="before")
    @classmethod
    def _urls_are_a_list(cls, urls: Any) -> Any:
        if urls is None or isinstance(urls, str | bytes):
            raise ValueError('it is a list of addresses: write ["amqp://user:password@host/vhost"]')
        return urls

    @field_validator("amqp_urls")
    @classmethod
    def _urls_can_be_understood(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if not urls:
            raise ValueError("AMQP_URL names no broker: amqp://user:password@host:5672/vhost")
        if len({broker_address(url).scheme for url in urls}) > 1:
            raise ValueError(
                "AMQP_URL mixes amqps:// and amqp://: blocking the former would reveal the password by the latter"
            )
        return tuple(url.strip() for url in urls)

    @cached_property
    def brokers(self) -> tuple[BrokerAddress, ...]:
        """The addresses of `amqp_urls`, parsed once for every use."""
        return tuple(map(broker_address, self.amqp_urls))

    @field_validator("management_url")
    @classmethod
    def _management_url_can_be_understood(cls, url: str) -> str:
        found = _MANAGEMENT_URL.fullmatch(url := url.strip())
        if url and (not found or not 0 < int(found["port"] or 1) < 2**16):
            raise ValueError(
                "MANAGEMENT_URL has the form http://host:15672 or http://user:password@host:15672, or https://; in a "
                "password write : / ? # @ as %3A %2F %3F %23 %40"
            )
        return url

    @model_validator(mode="after")
    def _values_fit_each_other(self) -> Self:
        management = urlsplit(self.management_url)
        in_the_open = management.scheme == "http" and management.hostname not in {"localhost", "127.0.0.1", "::1"}
        if in_the_open and self.brokers[0].tls:
            raise ValueError("MANAGEMENT_URL must begin with https://, as AMQP_URL is amqps://: it gets a password")
        files = (self.tls_ca_file, self.tls_cert_file, self.tls_key_file)
        if any(files):
            if not self.brokers[0].tls:
                raise ValueError("TLS_CA_FILE, TLS_CERT_FILE, TLS_KEY_FILE are for amqps://; AMQP_URL has none")
            tls.context(*files)
        if self.publish_timeout >= self.lease / 2:
            raise ValueError(
                "PUBLISH_TIMEOUT must be below half of LEASE: otherwise two relays could publish a row at the same time"
            )
        if self.inbox_retention_days <= self.outbox_retention_days:
            raise ValueError("INBOX_RETENTION_DAYS must exceed OUTBOX_RETENTION_DAYS: a replay would run twice")
        return self


@cache
def get() -> MessagingSettings:
    """Return the settings, read once.

    Raises ImproperlyConfigured with the name of the first wrong value.
    """
    given: Any = getattr(settings, "MESSAGING", None)
    if given is None:
        raise ImproperlyConfigured("MESSAGING is not set; it needs at least AMQP_URLS.")
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ImproperlyConfigured('MESSAGING must be a dict of names and values, such as {"AMQP_URLS": [...]}.')
    try:
        return MessagingSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(["MESSAGING", *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            raise ImproperlyConfigured(f"{name} is no setting: remove it, or correct its name.") from None
        raise ImproperlyConfigured(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "MESSAGING":
        get.cache_clear()
