"""What can become of a call that brings no result. All are `RpcError`; the client never tries again by itself."""

from __future__ import annotations

from messaging.exceptions import MessagingError


class RpcError(MessagingError):
    """Parent of every way in which a call can fail."""


class NoServer(RpcError):
    """Nobody serves the procedure: the broker gave the request back at once. It was not executed."""


class NoBroker(RpcError):
    """The broker cannot be reached, or takes no messages. The request was not sent.

    `silent`: it may well be there, and did not answer in time, because it is frozen, overworked or full.
    """

    def __init__(self, text: str, *, silent: bool = False) -> None:
        super().__init__(text)
        self.silent = silent


class ConnectionLost(RpcError):
    """The connection, or the reply queue, was lost after the request was sent. It may have been executed."""


class RpcTimeout(RpcError):
    """No reply came in time. The request may have been executed, or may still be; unserved, it expires."""


class BadReply(RpcError):
    """The reply is not JSON, or too large. The request was executed."""


class RemoteError(RpcError):
    """The procedure, or the server before it, answered with an error.

    `type` is the name of the error's class there, `message` its text. Only these two travel: no traceback, and
    nothing that could be executed here.
    """

    def __init__(self, type: str, message: str) -> None:
        super().__init__(f"{type}: {message}" if message else type)
        self.type = type
        self.message = message


class UnknownProcedure(RpcError):
    """No procedure of that name is registered in this process."""
