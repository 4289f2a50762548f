"""Why the broker cannot be used, in words for people. TLS, DNS and handshake errors are not `AMQPError`."""

from __future__ import annotations

import ast
import re
import socket
import ssl
from enum import IntEnum

from pika import exceptions
from pika.adapters.utils import connection_workflow

from messaging.broker import reply_codes
from messaging.exceptions import BrokerUnavailable, ChannelClosed
from messaging.validation.addresses import BrokerAddress

#: AMQP reply codes by which a broker says no to a connection: access refused, not allowed (no such vhost).
REFUSED_CODES = {403, 530}
#: Those by which it ends a connection over a method that it never carries out, such as basic.get from a stream.
NEVER_CARRIED_OUT = {reply_codes.SYNTAX_ERROR, reply_codes.COMMAND_INVALID, reply_codes.NOT_IMPLEMENTED}

#: What RabbitMQ 4 calls queues that are neither durable nor exclusive. A broker may permit them no more, and closes the
#: whole connection of who declares one (https://www.rabbitmq.com/docs/deprecated-features-list).
TRANSIENT_QUEUES = "transient_nonexcl_queues"

#: RabbitMQ's words for every limit of a vhost, a user, a node or a connection: "connection limit (1) is reached", "has
#: reached the maximum allowed user limit of (1)", "has reached the negotiated channel_max (8)".
#: At their end, where no name of somebody's can be.
_LIMIT = re.compile(r"(\blimit\b.* is reached|\bhas reached the .*(limit of|channel_max) \(\d+\))\.?$", re.DOTALL)
#: RabbitMQ's words for a vhost whose processes do not run.
_VHOST_DOWN = re.compile(r"\bvhost '.*' is down\b", re.DOTALL)
#: How our own sentences about the two begin: waiting helps, and no other address or account is needed.
AT_A_LIMIT = "the broker is at a limit"
VHOST_IS_DOWN = "the virtual host does not run there"
#: How pika quotes what ended a log-in.
_CLOSED_BY_BROKER = re.compile(r"ConnectionClosedByBroker: \((\d+)\) (.*)", re.DOTALL)
#: RabbitMQ's `loopback_users`, as it is installed (https://www.rabbitmq.com/docs/access-control#loopback-users).
GUEST_IS_LOCAL = "RabbitMQ lets guest in only from its own machine: take another account"

#: What OpenSSL calls an answer that is not TLS, by its version.
_NO_TLS_THERE = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}


class _Verdict(IntEnum):
    """Codes of OpenSSL's verification (`man openssl-verification-options`)."""

    NO_ISSUER = 2
    NOT_YET_VALID = 9
    EXPIRED = 10
    SELF_SIGNED = 18
    SELF_SIGNED_ROOT = 19
    NO_LOCAL_ISSUER = 20
    NO_FIRST_ISSUER = 21
    OTHER_HOST = 62
    OTHER_ADDRESS = 64


_NOBODY_WE_TRUST = {
    _Verdict.NO_ISSUER,
    _Verdict.SELF_SIGNED,
    _Verdict.SELF_SIGNED_ROOT,
    _Verdict.NO_LOCAL_ISSUER,
    _Verdict.NO_FIRST_ISSUER,
}


def describe(error: BaseException, address: BrokerAddress | None = None) -> str:
    """Return one line that says what went wrong, and where if `address` is given, without any credentials."""
    error = _cause(error)
    if address is None:
        return _described(error)
    if isinstance(error, ConnectionRefusedError):
        return f"connection refused: nothing listens at {address.place}"
    return f"{_described(error, address)} ({address.place})"


def _described(error: BaseException, address: BrokerAddress | None = None) -> str:
    if alert := _certificate_alert(error):
        return f"TLS: the broker refused our certificate, or wants one ({alert}): set AMQP_TLS_CERT_FILE"
    _, words = _closed_by_broker(error)
    match error:
        case _ if is_limit(error):
            return f"{AT_A_LIMIT}: {words}"
        case _ if _VHOST_DOWN.search(words):
            return f"{VHOST_IS_DOWN}, `rabbitmqctl restart_vhost` starts it: {words}"
        case exceptions.ProbableAuthenticationError() | exceptions.ProbableAccessDeniedError() if not is_refusal(error):
            return f"the connection ended during the log-in: {_text_at_log_in(error)}"
        case exceptions.ProbableAuthenticationError() | exceptions.AuthenticationError():
            said = "the broker refused the user name or the password"
            return f"{said}; {GUEST_IS_LOCAL}" if address is None or address.is_guest_elsewhere else said
        case exceptions.ProbableAccessDeniedError() if "vhost" in words:
            return f"the broker refused access to the virtual host: {words}"
        case exceptions.ProbableAccessDeniedError():
            return f"the broker refused the connection: {words}"
        case exceptions.ConnectionClosed() if TRANSIENT_QUEUES in error.reply_text:
            return f"this broker permits no queues that are neither durable nor exclusive ({TRANSIENT_QUEUES})"
        case exceptions.ConnectionClosed() | exceptions.ChannelClosed():
            return f"{error.reply_code} {' '.join(error.reply_text.split())}"
        case exceptions.NoFreeChannels():
            return "all channels that the broker allows on one connection (channel_max) are open"
        case exceptions.AMQPHeartbeatTimeout():
            return "the broker sent no heartbeat in time"
        case exceptions.IncompatibleProtocolError():
            # pika's name for any end before the broker's first frame.
            return "whoever answers there hung up before the AMQP handshake: is it RabbitMQ, and has it started?"
        case _ if is_silence(error):
            return "the broker did not answer in time"
        case ConnectionRefusedError():
            return "connection refused: nothing listens there"
        case ssl.SSLError():
            return f"TLS: {_tls(error)}"
        case socket.gaierror():
            return f"the host name cannot be resolved: {error.strerror}"
        case exceptions.StreamLostError():
            return f"the connection broke: {error}"
        case TypeError():
            return f"a value of the wrong kind was given: {error}"
        case _:
            return f"{type(error).__name__}: {error}".rstrip(": ")


def is_refusal(error: BaseException) -> bool:
    """Whether the broker answered and said no, or we to its certificate: other credentials or certificates are
    needed, not another attempt."""
    error = _cause(error)
    code, _ = _closed_by_broker(error)
    if code:
        return code in REFUSED_CODES and not is_limit(error)
    return isinstance(error, ssl.SSLCertVerificationError) or bool(_certificate_alert(error))


def is_limit(error: BaseException) -> bool:
    """Whether the broker closed the connection for want of room: once others have left it will take us."""
    _, words = _closed_by_broker(_cause(error))
    return bool(_LIMIT.search(words))


def says_limit(refusal: ChannelClosed) -> bool:
    """Whether the broker refused to make something because there are too many already."""
    return bool(_LIMIT.search(refusal.text))


def is_silence(error: BaseException) -> bool:
    """Whether nobody said anything in time."""
    # pika itself breaks off a handshake that takes too long.
    late = (connection_workflow.AMQPConnectorStackTimeout, exceptions.ConnectionOpenAborted, TimeoutError)
    return isinstance(_cause(error), late)


def channel_closed(error: BaseException) -> ChannelClosed | BrokerUnavailable:
    """Translate pika's reason for a closed channel. Where the broker closed the whole connection over a method that it
    will never carry out, that is a refusal too: another connection would end likewise."""
    if isinstance(error, exceptions.ChannelClosed) or (
        isinstance(error, exceptions.ConnectionClosedByBroker) and error.reply_code in NEVER_CARRIED_OUT
    ):
        return ChannelClosed(error.reply_code, error.reply_text)
    return BrokerUnavailable(describe(error))


def _closed_by_broker(error: BaseException) -> tuple[int, str]:
    """Return AMQP's reply code and the broker's own words where it closed the connection; else 0 and an empty text."""
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
    """Return what really ended a log-in. To pika any end of it is a refusal, probably; it keeps the truth as text."""
    return str(error.args[0]) if error.args else ""


def _tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        because = error.verify_message.rstrip(".")
        match error.verify_code:
            case _Verdict.EXPIRED:
                return "the broker's certificate has expired"
            case _Verdict.NOT_YET_VALID:
                return "the broker's certificate is not valid yet: is this machine's clock right?"
            case _Verdict.OTHER_HOST | _Verdict.OTHER_ADDRESS:
                return f"the broker's certificate is another host's: {because}"
            case code if code in _NOBODY_WE_TRUST:
                return f"the broker's certificate comes from nobody trusted here ({because}): set AMQP_TLS_CA_FILE"
        return f"the broker's certificate is refused: {because}"
    if error.reason in _NO_TLS_THERE:
        return "whoever answers there speaks no TLS: amqps:// has a port of its own"
    return _in_words(error.reason or str(error))


def _certificate_alert(error: BaseException) -> str:
    """Return in words the alert by which the broker refused our certificate; empty where it did not.

    With TLS 1.3 it comes after the handshake, and pika keeps it only in the text of its own error.
    """
    found = re.search(r"\[SSL: (\w*ALERT\w*(?:CERTIFICATE|UNKNOWN_CA)\w*)\]", str(error))
    return _in_words(found[1]) if found else ""


def _in_words(reason: str) -> str:
    return reason.lower().replace("_", " ")


def _cause(error: BaseException) -> BaseException:
    """Unwrap pika's connection workflow: the last attempt's own error."""
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
