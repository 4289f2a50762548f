"""The broker's address, parsed once for AMQP, the management API, checks and messages to people.

Clients parse some forms differently: a blank in front, a '/' in the name of a vhost, a user without a password. Those
are refused here, and every client gets the parts that were parsed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

#: AMQP's default user, which RabbitMQ lets in from its own machine only.
GUEST = "guest"
#: AMQP's ports, without and with TLS.
PORTS = {"amqp": 5672, "amqps": 5671}
#: The options after '?', with the least and the largest value of each.
OPTIONS = {"heartbeat": (2, 65535), "frame_max": (4096, 131072), "channel_max": (1, 65535)}
#: Bytes of AMQP's short strings; the name of a vhost is one.
MAX_VHOST_BYTES = 255

_SHAPE = "amqp://user:password@host:5672/vhost"
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Host, user and vhost of a broker. As text: the address without its password."""

    scheme: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    #: None: not in the address; the settings or the broker decide.
    heartbeat: int | None = None
    frame_max: int | None = None
    channel_max: int | None = None

    @property
    def tls(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme == "amqps"

    @property
    def place(self) -> str:
        """Host and port, as people write them."""
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def is_guest_elsewhere(self) -> bool:
        """Whether a freshly installed RabbitMQ refuses this user, whatever the password."""
        return self.user == GUEST and self.host not in {"localhost", "::1"} and not self.host.startswith("127.")

    def __str__(self) -> str:
        return f"{self.scheme}://{quote(self.user, safe='')}:***@{self.place}/{quote(self.vhost, safe='')}"


def bracketed(host: str) -> str:
    """Return `host` as it is written in an address."""
    return f"[{host}]" if ":" in host else host


def broker_address(text: str) -> BrokerAddress:
    """Read one address. Without user and password both are guest; without a vhost it is "/".

    Raises ValueError, with one sentence that ends with the address, its password hidden.
    """
    text = text.strip()
    try:
        return _read(text)
    except ValueError as error:
        shown = hidden(text)
        raise ValueError(f"{error} ({shown})" if shown else str(error)) from None


def hidden(text: str) -> str:
    """Return an address, however malformed, without what may be a password; empty if nothing else is left."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        return ""
    who, at, where = rest.rpartition("@")
    if not at:
        # "user:pass", cut off at a comma, looks like a host and port.
        host, colon, _ = rest.partition(":")
        return f"{scheme}://{host}:***" if colon and not rest.startswith("[") else text
    user, colon, _ = who.partition(":")
    secret = ":***" if colon else ""
    return f"{scheme}://{'***' if '@' in user or '/' in user else user}{secret}@{where}"


def without_options(text: str) -> str:
    """Return an address without what follows '?': Celery has other options there, and fails on ours."""
    return text.partition("?")[0]


def _read(text: str) -> BrokerAddress:
    if text[:1] in {'"', "'"}:
        raise ValueError("AMQP_URL is written in quotation marks: leave them out")
    if _BLANKS.search(text):
        raise ValueError("AMQP_URL contains a blank: write it as %20, and put a comma between two addresses")
    if "#" in text:
        raise ValueError("AMQP_URL contains '#': write it as %23")
    parts, port = _split(text)
    if parts.scheme not in PORTS:
        raise ValueError(f"AMQP_URL must begin with amqp:// or amqps://, not {parts.scheme or 'nothing'}://")
    if not parts.hostname:
        raise ValueError(f"AMQP_URL names no host: {_SHAPE}")
    if "," in parts.hostname:
        raise ValueError("AMQP_URL: the name of a host has no comma")
    user, password = _account(parts)
    if "@" in parts.path and "@" not in parts.netloc:
        raise ValueError("AMQP_URL: in a user name or password write '/' as %2F, in the name of a vhost '@' as %40")
    return BrokerAddress(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or PORTS[parts.scheme],
        user=user,
        password=password,
        vhost=_vhost(parts.path),
        **_options(parts.query),
    )


def _split(text: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        # Not repeated: after a stray ':' or '/' a part of the password looks like a port.
        raise ValueError(
            "AMQP_URL: the port must be a number from 1 to 65535; in a password write ':', '/', '@' and ',' as %3A, "
            "%2F, %40 and %2C"
        ) from None
    if port == 0:
        raise ValueError("AMQP_URL: port 0 does not exist")
    return parts, port


def _account(parts: SplitResult) -> tuple[str, str]:
    if "@" not in parts.netloc:
        return GUEST, GUEST
    user = _decoded("user", parts.username or "")
    if not user:
        raise ValueError(f"AMQP_URL names no user before '@': {_SHAPE}")
    password = _decoded("password", parts.password or "")
    if not password:
        raise ValueError(f"AMQP_URL names user {user} without a password: {_SHAPE}")
    return user, password


def _vhost(path: str) -> str:
    name = path.removeprefix("/")
    if "/" in name:
        raise ValueError("AMQP_URL: a '/' in the name of a vhost is written as %2F, and none comes after the name")
    vhost = _decoded("vhost", name) or "/"
    if len(vhost.encode()) > MAX_VHOST_BYTES:
        raise ValueError(f"AMQP_URL: the name of the vhost is longer than {MAX_VHOST_BYTES} bytes")
    return vhost


def _decoded(what: str, text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"AMQP_URL: the {what} is not UTF-8 once its %-signs are decoded") from None
    if "\0" in decoded:
        raise ValueError(f"AMQP_URL: the {what} contains %00, which AMQP cannot carry")
    return decoded


def _options(query: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "ssl_options":
            raise ValueError(
                "AMQP_URL: ssl_options is not read; amqps:// always verifies, by TLS_CA_FILE, TLS_CERT_FILE, "
                "TLS_KEY_FILE"
            )
        if name not in OPTIONS:
            # A '?' in a password makes its end look like an option: only a possible name is repeated.
            said = name if name.isidentifier() else "***"
            raise ValueError(
                f"AMQP_URL: the option {said} is not read; after '?' may come {', '.join(OPTIONS)}. Times are in "
                "settings.MESSAGING"
            )
        if name in found:
            raise ValueError(f"AMQP_URL: the option {name} is given twice")
        low, high = OPTIONS[name]
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise ValueError(f"AMQP_URL: {name} must be a whole number from {low} to {high}")
        found[name] = int(value)
    return found
