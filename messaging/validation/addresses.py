"""The broker's address, parsed once for AMQP, the management API, checks and messages to people.

Clients parse some forms differently: a '/' in the name of a vhost, a user without a password. Those are refused here,
and every client gets the parts that were parsed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote

from messaging.validation.texts import LONGEST

#: AMQP's default user, which RabbitMQ lets in from its own machine only.
GUEST = "guest"
#: AMQP's ports, without and with TLS.
PORTS = {"amqp": 5672, "amqps": 5671}
#: The options after '?', with the least and the largest value of each.
OPTIONS = {"heartbeat": (2, 65535), "frame_max": (4096, 131072), "channel_max": (1, 65535)}

_FORM = re.compile(
    r"""(?! .* [\s\x00-\x1f\x7f])
    (?P<scheme> amqps? ) ://
    (?: (?P<user> [^:/?\#]+ ) : (?P<password> [^/?\#]+ ) @ )?
    (?P<host> \[[0-9a-f:.]+\] | [^\[\]:/?\#@,'"]+ ) (?: : (?P<port> [0-9]{0,5} ) )?
    (?: / (?P<vhost> (?(user) [^/?\#]* | [^/?\#@]* ) ) )?  # without a user an '@' shows that the password has a '/'
    (?: \? (?P<options> [^\#@]* ) )?""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


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


def _read(text: str) -> BrokerAddress:
    found = _FORM.fullmatch(text)
    if not found or not 0 < int(found["port"] or 1) < 2**16:
        raise ValueError(
            "AMQP_URL has the form amqp://user:password@host:port/vhost, or amqps://; within a name or a password "
            "write a blank and % @ : / ? # , as %20 and %25 %40 %3A %2F %3F %23 %2C"
        )
    scheme = found["scheme"].lower()
    try:
        user, password, vhost = (
            unquote(found[part] or usual, errors="strict")
            for part, usual in (("user", GUEST), ("password", GUEST), ("vhost", "/"))
        )
    except UnicodeDecodeError:
        raise ValueError("AMQP_URL: a name or the password is not UTF-8 once its %-signs are decoded") from None
    if "\0" in user + password + vhost or len(vhost.encode()) > LONGEST:
        raise ValueError(f"AMQP_URL: AMQP has no %00 in names, and {LONGEST} bytes for the name of a vhost")
    return BrokerAddress(
        scheme=scheme,
        host=found["host"].strip("[]").lower(),
        port=int(found["port"] or PORTS[scheme]),
        user=user,
        password=password,
        vhost=vhost,
        **_options(found["options"] or ""),
    )


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
