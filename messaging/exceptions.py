"""Every error that this app raises on purpose. Nothing above `broker/` sees an exception of pika."""

from __future__ import annotations

from datetime import timedelta


class MessagingError(Exception):
    """Parent of every error that this app raises on purpose."""


class OutsideTransaction(MessagingError):
    """An event was added outside a transaction: it could not commit together with what it reports."""


class BodyTooLarge(MessagingError):
    """A body is over `MAX_BODY_BYTES`."""


class Undecodable(MessagingError, ValueError):
    """A message cannot be decoded, and another attempt would not help."""


class UnknownConsumer(MessagingError):
    """No consumer of that name is registered."""


# --- The broker cannot be used: the connection is missing or lost -----------------------------------------------


class BrokerUnavailable(MessagingError):
    """There is no usable connection to the broker, or it did not answer in time."""


class BrokerSilent(BrokerUnavailable):
    """The broker did not answer in time: it is frozen or overworked."""


class ThreadNotStarted(BrokerUnavailable):
    """The system started no thread for the connection to the broker: a limit on processes is reached."""


class QueueSilent(BrokerSilent):
    """A queue exists and does not answer, while the broker itself does."""


class BrokerRefused(BrokerUnavailable):
    """The broker refused the connection: user, password, virtual host or certificate are wrong."""


class LimitReached(BrokerUnavailable):
    """A limit on connections or channels is reached. Waiting helps."""


class VhostDown(BrokerUnavailable):
    """The virtual host exists, but the broker does not run it. Waiting helps."""


class TransientQueuesForbidden(BrokerUnavailable):
    """The broker closed the connection over a queue that is neither durable nor exclusive: it permits none."""


# --- The broker refused one operation; the connection stays -----------------------------------------------------


class OperationRefused(MessagingError):
    """The broker refused an operation, and closed its channel.

    `text` is what the broker said, for instance "NOT_FOUND - no exchange 'orders' in vhost '/'".
    """

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(f"{number} {text}" if number else text)
        self.text = text

    @property
    def sentence(self) -> str:
        """The broker's sentence without the name of the refusal."""
        return (self.text.partition(" - ")[2] or self.text).rstrip(".")


class NotFound(OperationRefused):
    """The exchange or queue is missing. A queue whose node is down is reported so too, in other words."""


class AccessRefused(OperationRefused):
    """This account lacks the right."""


class ResourceLocked(OperationRefused):
    """The queue is exclusive to another connection."""


class PreconditionFailed(OperationRefused):
    """The object exists with other properties, is in use, or cannot be as it was asked for."""


class ObjectLimitReached(OperationRefused):
    """The broker holds as many queues or exchanges as it may."""


class Unsupported(OperationRefused):
    """The broker never carries out this operation, such as reading a stream message by message."""


# --- What handlers, effects and procedures raise, and what is raised in them ------------------------------------


class Reject(MessagingError):
    """Raised by a handler: this message can never succeed. It is dead at once, with this reason."""


class RetryLater(MessagingError):
    """Raised by a handler: try again after the time `after`. Counts as an attempt of the retry policy."""

    def __init__(self, reason: str = "not now", *, after: timedelta) -> None:
        super().__init__(reason)
        self.after = after


class NotDone(MessagingError):
    """Raised by an effect: it surely did not happen, and is tried again by its retry policy."""


class NotRun(MessagingError):
    """A project's function returned work that did not run: a coroutine, a generator. It counts as failed."""


class HandlerTimeout(MessagingError):
    """A handler took longer than its timeout. Raised within the handler, at the line that it has reached."""


class UnknownEffect(MessagingError):
    """No effect of that name is registered."""


class ReplayStopped(MessagingError):
    """A replay stopped early, or too much of it failed again. The text says why, and what is left."""


# --- Why a call over RPC has no result. The client never retries by itself. -------------------------------------


class RpcError(MessagingError):
    """Parent of every way in which a call can fail. Its `__cause__` is the broker's error, if there was one."""

    def __init__(self, text: str, *, cause: Exception | None = None) -> None:
        super().__init__(text)
        self.__cause__ = cause


class NoServer(RpcError):
    """No process serves the procedure: the broker returned the request at once. It was not executed."""


class NoBroker(RpcError):
    """The broker is unreachable, or takes no messages. The request was not sent.

    `silent`: the broker did not answer in time, because it is frozen, overworked or full.
    """

    def __init__(self, text: str, *, silent: bool = False, cause: Exception | None = None) -> None:
        super().__init__(text, cause=cause)
        self.silent = silent


class ConnectionLost(RpcError):
    """The connection, or the reply queue, was lost after the request was sent. It may have been executed."""


class RpcTimeout(RpcError):
    """No reply came in time. The request may have been executed, or may yet be; it expires if no server takes it."""


class BadReply(RpcError):
    """The reply is not JSON, or too large. The request was executed."""


class RemoteError(RpcError):
    """The procedure, or the server before it, answered with an error.

    `type` is the name of its class there, `message` its text. Nothing else travels, and nothing is executed here.
    """

    def __init__(self, type: str, message: str) -> None:
        super().__init__(f"{type}: {message}" if message else type)
        self.type = type
        self.message = message


class UnknownProcedure(RpcError):
    """No procedure of that name is registered in this process."""
