"""Why the broker cannot be used, in words for people. TLS, DNS and handshake errors are not `AMQPError`."""

from __future__ import annotations

import socket
import ssl

from pika import exceptions
from pika.adapters.utils import connection_workflow

from messaging.exceptions import BrokerUnavailable, ChannelClosed

#: AMQP reply codes by which a broker says no to a connection: access refused, not allowed (no such vhost).
REFUSED_CODES = {403, 530}


def describe(error: BaseException) -> str:
    """Return one line that says what went wrong, without any credentials."""
    error = _cause(error)
    match error:
        case exceptions.ProbableAuthenticationError() | exceptions.AuthenticationError():
            return "the broker refused the user name or the password"
        case exceptions.ProbableAccessDeniedError():
            return "the broker refused access to the virtual host"
        case exceptions.ConnectionClosed() | exceptions.ChannelClosed():
            return f"{error.reply_code} {error.reply_text}"
        case exceptions.AMQPHeartbeatTimeout():
            return "the broker sent no heartbeat in time"
        case exceptions.IncompatibleProtocolError():
            # pika's name for any end before the broker's first frame.
            return "whoever answers there hung up before the AMQP handshake: is it RabbitMQ, and has it started?"
        # pika itself breaks off a handshake that takes too long.
        case connection_workflow.AMQPConnectorStackTimeout() | exceptions.ConnectionOpenAborted() | TimeoutError():
            return "the broker did not answer in time"
        case ConnectionRefusedError():
            return "connection refused: nothing listens there"
        case ssl.SSLError():
            return f"TLS: {error.reason or error}"
        case socket.gaierror():
            return f"the host name cannot be resolved: {error.strerror}"
        case exceptions.StreamLostError():
            return f"the connection broke: {error}"
        case _:
            return f"{type(error).__name__}: {error}".rstrip(": ")


def is_refusal(error: BaseException) -> bool:
    """Whether the broker answered and said no: other credentials are needed, not another attempt."""
    error = _cause(error)
    if isinstance(error, exceptions.ConnectionClosed):
        return error.reply_code in REFUSED_CODES
    return isinstance(error, exceptions.ProbableAuthenticationError | exceptions.ProbableAccessDeniedError)


def channel_closed(error: BaseException) -> ChannelClosed | BrokerUnavailable:
    """Translate pika's reason for a closed channel."""
    if isinstance(error, exceptions.ChannelClosed):
        return ChannelClosed(error.reply_code, error.reply_text)
    return BrokerUnavailable(describe(error))


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
