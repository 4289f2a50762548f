"""Errors: what RabbitMQ, pika, TLS and DNS report, as this app's own errors, in words for people.

AMQP's reply codes are known here and nowhere else.
"""

from __future__ import annotations

import ast
import re
import socket
import ssl
from dataclasses import dataclass

from pika import exceptions
from pika.adapters.utils import connection_workflow

from messaging.exceptions import (
    AccessRefused,
    BrokerRefused,
    BrokerSilent,
    BrokerUnavailable,
    LimitReached,
    NotFound,
    ObjectLimitReached,
    OperationRefused,
    PreconditionFailed,
    ResourceLocked,
    TransientQueuesForbidden,
    Unsupported,
    VhostDown,
)
from messaging.validation.addresses import BrokerAddress

#: AMQP's reply codes for a refused operation (https://www.rabbitmq.com/amqp-0-9-1-reference#constants).
_REFUSALS = {403: AccessRefused, 404: NotFound, 405: ResourceLocked, 406: PreconditionFailed, 540: Unsupported}
#: Codes for a refused connection: access refused, not allowed (for instance a missing virtual host).
_CONNECTION_REFUSED = {403, 530}
#: Codes for a connection that ended over a method which the broker never carries out: syntax error, command invalid,
#: not implemented.
_NEVER_CARRIED_OUT = {502, 503, 540}

#: RabbitMQ 4's name for queues that are neither durable nor exclusive. A broker that forbids them closes the whole
#: connection (https://www.rabbitmq.com/docs/deprecated-features-list).
TRANSIENT_QUEUES = "transient_nonexcl_queues"
#: RabbitMQ's `loopback_users`, as it is installed (https://www.rabbitmq.com/docs/access-control#loopback-users).
GUEST_IS_LOCAL = "RabbitMQ lets guest in only from its own machine: take another account"

#: RabbitMQ's words for every limit of a vhost, a user, a node or a connection: "connection limit (1) is reached", "has
#: reached the maximum allowed user limit of (1)", "has reached the negotiated channel_max (8)".
#: Anchored at the end, so that no name of a vhost or queue can match.
_LIMIT = re.compile(r"(\blimit\b.* is reached|\bhas reached the .*(limit of|channel_max) \(\d+\))\.?$", re.DOTALL)
_VHOST_DOWN = re.compile(r"\bvhost '.*' is down\b", re.DOTALL)
#: How pika quotes what ended a log-in.
_CLOSED_BY_BROKER = re.compile(r"ConnectionClosedByBroker: \((\d+)\) (.*)", re.DOTALL)
#: How RabbitMQ names the first property in which an existing object differs from its declaration.
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<property>[^']*)' for (?P<kind>queue|exchange) '(?P<name>.*)' in vhost '.*': "
    r"received (?P<asked>.+) but current is (?P<found>.+)$",
    re.DOTALL,
)
_TYPED_VALUE = re.compile(r"the value '(.*)' of type '\w+'", re.DOTALL)

#: OpenSSL's reasons for an answer that is not TLS, by its version.
_NOT_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
#: What OpenSSL finds wrong with a certificate, by its code (`man openssl-verification-options`).
_CERTIFICATE_FAULTS = {
    9: "is not valid yet: is this machine's clock right?",
    10: "has expired",
    **dict.fromkeys((62, 64), "is another host's: {because}"),
    **dict.fromkeys((2, 18, 19, 20, 21), "is signed by no CA that is trusted here ({because}): set AMQP_TLS_CA_FILE"),
}


# --- Translation --------------------------------------------------------------------------------------------------


def unavailable(error: BaseException, address: BrokerAddress | None = None) -> BrokerUnavailable:
    """Return the error that says in one line why the connection to the broker failed or was lost.

    It names `address`, if that is given, and never any credentials.
    """
    error = _cause(error)
    if isinstance(error, ConnectionRefusedError):
        return BrokerUnavailable(f"connection refused: nothing listens {f'at {address.place}' if address else 'there'}")
    found = _explained(error, address)
    return type(found)(f"{found} ({address.place})") if address else found


def describe(error: BaseException, address: BrokerAddress | None = None) -> str:
    """Return the text of `unavailable`."""
    return str(unavailable(error, address))


def refused_or_lost(error: BaseException) -> OperationRefused | BrokerUnavailable:
    """Return the error for what ended a channel.

    A connection that the broker closed over a method that it never carries out counts as a refused operation: another
    connection would end likewise.
    """
    if isinstance(error, exceptions.ChannelClosed) or (
        isinstance(error, exceptions.ConnectionClosedByBroker) and error.reply_code in _NEVER_CARRIED_OUT
    ):
        kind = _REFUSALS.get(error.reply_code, OperationRefused)
        if kind is PreconditionFailed and _LIMIT.search(error.reply_text):
            kind = ObjectLimitReached
        return kind(error.reply_text, error.reply_code)
    return unavailable(error)


# --- Differences --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """One property in which an existing queue or exchange differs from its declaration. As text: one line.

    `kind` is "queue" or "exchange"; `asked` and `found` are None for an absent argument.
    """

    kind: str
    name: str
    property: str
    asked: str | None
    found: str | None

    def __str__(self) -> str:
        return f"{self.kind} {self.name} exists {self.stated(self.found)}, you asked for it {self.stated(self.asked)}"

    def stated(self, value: str | None) -> str:
        """Return "with durable=true", or "without x-max-priority"."""
        return f"without {self.property}" if value is None else f"with {self.property}={value}"


def difference(error: Exception) -> Difference | None:
    """Return the first difference that the refusal names; None if the broker refused for another reason."""
    said = _INEQUIVALENT.search(error.text) if isinstance(error, PreconditionFailed) else None
    if said is None:
        return None
    return Difference(said["kind"], said["name"], said["property"], _value(said["asked"]), _value(said["found"]))


def _value(text: str) -> str | None:
    if text == "none":
        return None
    typed = _TYPED_VALUE.fullmatch(text)
    return typed[1] if typed else text.strip("'")


# --- Words --------------------------------------------------------------------------------------------------------


def _explained(error: BaseException, address: BrokerAddress | None) -> BrokerUnavailable:
    if alert := _certificate_alert(error):
        return BrokerRefused(f"TLS: the broker refused our certificate, or wants one ({alert}): set AMQP_TLS_CERT_FILE")
    code, words = _closed_by_broker(error)
    kind = BrokerRefused if code in _CONNECTION_REFUSED else BrokerUnavailable
    match error:
        case exceptions.NoFreeChannels():
            return LimitReached("all channels that the broker allows on one connection (channel_max) are open")
        case _ if _LIMIT.search(words):
            return LimitReached(f"the broker is at a limit: {words}")
        case _ if _VHOST_DOWN.search(words):
            return VhostDown(f"the virtual host does not run there, `rabbitmqctl restart_vhost` starts it: {words}")
        case exceptions.ConnectionClosed() if TRANSIENT_QUEUES in error.reply_text:
            return TransientQueuesForbidden(
                f"this broker permits no queues that are neither durable nor exclusive ({TRANSIENT_QUEUES})"
            )
        case exceptions.ProbableAuthenticationError() | exceptions.ProbableAccessDeniedError() if (
            kind is BrokerUnavailable
        ):
            return kind(f"the connection ended during the log-in: {_text_at_log_in(error)}")
        case exceptions.ProbableAuthenticationError() | exceptions.AuthenticationError():
            hint = f"; {GUEST_IS_LOCAL}" if address is None or address.is_guest_elsewhere else ""
            return kind(f"the broker refused the user name or the password{hint}")
        case exceptions.ProbableAccessDeniedError():
            what = "access to the virtual host" if "vhost" in words else "the connection"
            return kind(f"the broker refused {what}: {words}")
        case exceptions.ConnectionClosed() | exceptions.ChannelClosed():
            return kind(f"{error.reply_code} {' '.join(error.reply_text.split())}")
        case exceptions.AMQPHeartbeatTimeout():
            return kind("the broker sent no heartbeat in time")
        case exceptions.IncompatibleProtocolError():
            # pika's name for any end before the broker's first frame.
            return kind("the server there hung up before the AMQP handshake: is it RabbitMQ, and has it started?")
        case connection_workflow.AMQPConnectorStackTimeout() | exceptions.ConnectionOpenAborted() | TimeoutError():
            # pika itself breaks off a handshake that takes too long.
            return BrokerSilent("the broker did not answer in time")
        case ssl.SSLCertVerificationError():
            fault = _CERTIFICATE_FAULTS.get(error.verify_code, "is refused: {because}")
            because = error.verify_message.rstrip(".")
            return BrokerRefused(f"TLS: the broker's certificate {fault.format(because=because)}")
        case ssl.SSLError() if error.reason in _NOT_TLS:
            return kind("TLS: the server there speaks no TLS: amqps:// has a port of its own")
        case ssl.SSLError():
            return kind(f"TLS: {_in_words(error.reason or str(error))}")
        case socket.gaierror():
            return kind(f"the host name cannot be resolved: {error.strerror}")
        case exceptions.StreamLostError():
            return kind(f"the connection broke: {error}")
        case TypeError():
            return kind(f"a value of the wrong kind was given: {error}")
    return kind(f"{type(error).__name__}: {error}".rstrip(": "))


# --- pika's errors, unwrapped -------------------------------------------------------------------------------------


def _closed_by_broker(error: BaseException) -> tuple[int, str]:
    """Return AMQP's reply code and the broker's own words if it closed the connection; else 0 and an empty text."""
    if isinstance(error, exceptions.ConnectionClosedByBroker):
        return error.reply_code, _own_words(error.reply_text)
    if isinstance(error, exceptions.ProbableAuthenticationError | exceptions.ProbableAccessDeniedError):
        said = _CLOSED_BY_BROKER.search(_text_at_log_in(error))
        if said is not None:
            return int(said[1]), _own_words(_unquoted(said[2]))
    return 0, ""


def _own_words(text: str) -> str:
    # RabbitMQ begins with the name of the code: "NOT_ALLOWED - vhost x not found".
    return " ".join(re.sub(r"^[A-Z_]+ - ", "", text).split())


def _unquoted(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _text_at_log_in(error: BaseException) -> str:
    """Return what really ended a log-in. pika calls every end of it a probable refusal, and keeps the truth as text."""
    return str(error.args[0]) if error.args else ""


def _certificate_alert(error: BaseException) -> str:
    """Return in words the alert by which the broker refused our certificate; empty if it did not.

    With TLS 1.3 it comes after the handshake, and pika keeps it only in the text of its own error.
    """
    found = re.search(r"\[SSL: (\w*ALERT\w*(?:CERTIFICATE|UNKNOWN_CA)\w*)\]", str(error))
    return _in_words(found[1]) if found else ""


def _in_words(reason: str) -> str:
    return reason.lower().replace("_", " ")


def _cause(error: BaseException) -> BaseException:
    """Unwrap pika's connection workflow: return the last attempt's own error."""
    while True:
        if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed) and error.exceptions:
            error = error.exceptions[-1]
        elif isinstance(error, connection_workflow.AMQPConnectorException) and isinstance(
            getattr(error, "exception", None), BaseException
        ):
            error = error.exception
        elif type(error) is exceptions.AMQPConnectionError and error.args and isinstance(error.args[0], BaseException):
            error = error.args[0]
        else:
            return error


def no_confirm_within(seconds: float, *, blocked: bool) -> str:
    """Return the reason of messages that the broker did not confirm in time; `blocked`: because of an alarm."""
    reason = f"no confirm within {seconds:g} s"
    return f"{reason}: a memory or disk alarm blocks the broker" if blocked else reason
