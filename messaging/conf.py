"""`settings.MESSAGING`, typed: the one dict this app is configured by."""

from __future__ import annotations

import re
from functools import cache, cached_property
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from messaging.validation import texts, tls
from messaging.validation.addresses import BrokerAddress, broker_address


class MessagingSettings(BaseModel):
    """Every key of `settings.MESSAGING`, in capitals there, with its default. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=str.upper, allow_inf_nan=False)

    #: Addresses of the broker, tried in turn: amqp://user:password@host:port/vhost or amqps://… `brokers` has their
    #: parts.
    amqp_urls: tuple[str, ...]
    #: For amqps://, files in PEM form. The CAs that the broker's certificate may come from; empty: this machine's own.
    tls_ca_file: str = ""
    #: What this process shows to a broker that asks for a certificate, and its key, if not in the same file.
    tls_cert_file: str = ""
    tls_key_file: str = ""
    #: RabbitMQ's management API, if it is not on the broker's host at its usual port: https://host:15671. Without a
    #: user of its own, that of the broker's address is used.
    management_url: str = ""
    #: Written into the `app_id` property of every message, and the prefix of this app's own queues.
    app_id: str = Field(default="django", min_length=1, max_length=100)
    #: The topic exchange that events go to unless they name another.
    exchange: str = Field(default="events", min_length=1, max_length=255)
    queue_type: Literal["quorum", "classic"] = "quorum"
    #: Deliveries after which the broker itself gives a message up; above every retry policy of ours.
    delivery_limit: int = Field(default=1000, ge=1)
    #: Larger bodies are refused by the outbox; when they arrive from elsewhere they are dead.
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)

    #: Whether web and consumer processes publish what they commit; if not, `manage.py run_relay` must run.
    relay_thread: bool = True
    #: Whether logs go to the exchange `<APP_ID>.logs` too; what sends them is a handler of LOGGING.
    log_to_broker: bool = False
    #: How long a row belongs to the relay that holds it.
    lease: float = Field(default=30, gt=0)
    #: How long a relay waits for the broker's confirms.
    publish_timeout: float = Field(default=10, gt=0)
    #: How long a relay sleeps when the outbox is empty.
    poll_interval: float = Field(default=1, gt=0)
    #: Rows that a relay claims at once.
    claim_batch: int = Field(default=500, ge=1, le=5000)
    #: How often a relay declares the topology again, so that what was deleted by hand comes back.
    declare_interval: float = Field(default=10, gt=0)
    #: How long a stopping process may take to publish, or give back, what it holds.
    drain_timeout: float = Field(default=3, gt=0)

    #: Deadline of connecting: TCP, TLS and the AMQP handshake together.
    connect_timeout: float = Field(default=4, gt=0)
    #: Unless an address says otherwise (amqp://…?heartbeat=30).
    heartbeat: int = Field(default=15, ge=2)
    #: Longest pause between two attempts to connect.
    reconnect_max: float = Field(default=10, gt=0)
    #: Shortest pause once every address has refused this user: more attempts could lock it out.
    reconnect_refused: float = Field(default=30, gt=0)

    #: Unacknowledged deliveries that a consumer may hold, unless it says otherwise.
    prefetch: int = Field(default=50, ge=1, le=65535)
    #: How long a handler may take, unless its consumer says otherwise; then it gets an exception.
    handler_timeout: float = Field(default=300, gt=0)
    #: How long a procedure may take to answer, unless it says otherwise; then it gets an exception.
    procedure_timeout: float = Field(default=30, gt=0)
    #: How long a handler or procedure that got it may take to end; then its process does.
    handler_grace: float = Field(default=10, gt=0)
    #: How long a stopping consumer or RPC server may take to finish what it has started.
    stop_timeout: float = Field(default=25, gt=0)

    #: How long after its queue was seen empty a message counts as lost that has not arrived, and age from which one
    #: that waits counts as stuck.
    reconcile_after: float = Field(default=300, gt=0)
    #: A message that was lost is sent again once in this time.
    reconcile_interval: float = Field(default=900, gt=0)
    #: Messages sent again at once.
    reconcile_limit: int = Field(default=1000, ge=1)

    #: Days after which published outbox rows are pruned.
    outbox_retention_days: float = Field(default=14, gt=0)
    #: Days for which the inbox remembers a handled message; outlives every replay and outbox row.
    inbox_retention_days: float = Field(default=90, gt=0)

    @field_validator("app_id", "exchange")
    @classmethod
    def _names_fit_amqp(cls, name: str) -> str:
        return texts.checked("the name", name, octets=texts.LONGEST)

    @field_validator("amqp_urls")
    @classmethod
    def _urls_can_be_understood(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if not urls:
            raise ValueError("AMQP_URL names no broker: amqp://user:password@host:5672/vhost")
        if len({broker_address(url).scheme for url in urls}) > 1:
            raise ValueError(
                "AMQP_URL mixes amqps:// and amqp://: whoever blocks the former would get the password by the latter"
            )
        return tuple(url.strip() for url in urls)

    @cached_property
    def brokers(self) -> tuple[BrokerAddress, ...]:
        """The addresses of `amqp_urls`, read: the only form in which a part of one is used."""
        return tuple(map(broker_address, self.amqp_urls))

    @field_validator("management_url")
    @classmethod
    def _management_url_can_be_understood(cls, url: str) -> str:
        if url := url.strip():
            _check_management_url(url)
        return url

    @model_validator(mode="after")
    def _management_hides_what_amqp_hides(self) -> Self:
        management = urlsplit(self.management_url)
        in_the_open = management.scheme == "http" and management.hostname not in {"localhost", "127.0.0.1", "::1"}
        if in_the_open and self.brokers[0].tls:
            raise ValueError("MANAGEMENT_URL must begin with https://, as AMQP_URL is amqps://: it gets a password")
        return self

    @model_validator(mode="after")
    def _tls_files_can_be_used(self) -> Self:
        files = (self.tls_ca_file, self.tls_cert_file, self.tls_key_file)
        if any(files):
            if not self.brokers[0].tls:
                raise ValueError("TLS_CA_FILE, TLS_CERT_FILE, TLS_KEY_FILE are for amqps://; AMQP_URL has none")
            tls.context(*files)
        return self

    @model_validator(mode="after")
    def _times_fit_each_other(self) -> Self:
        if self.publish_timeout >= self.lease / 2:
            raise ValueError(
                "PUBLISH_TIMEOUT must be below half of LEASE: else a row could be published by two relays at once"
            )
        if self.inbox_retention_days <= self.outbox_retention_days:
            raise ValueError("INBOX_RETENTION_DAYS must exceed OUTBOX_RETENTION_DAYS: a replay would run twice")
        return self


def _check_management_url(url: str) -> None:
    """Raise ValueError, without repeating a password, where `url` is not an address of HTTP."""
    if re.search(r"[\s'\"]", url):
        raise ValueError("MANAGEMENT_URL has a blank or a quotation mark in it: leave it out")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(
            "MANAGEMENT_URL: the port must be a number; in a password write ':', '/' and '@' as %3A, %2F, %40"
        ) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError("MANAGEMENT_URL is an address such as http://host:15672")
    if "?" in url or "#" in url:
        raise ValueError("MANAGEMENT_URL has no '?' and no '#'; in a password write them as %3F and %23")
    if "@" in parts.netloc and not (parts.username and parts.password):
        raise ValueError("MANAGEMENT_URL names a user and a password, or neither: http://user:password@host:15672")


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
        raise ImproperlyConfigured(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "MESSAGING":
        get.cache_clear()


setting_changed.connect(_forget)
