"""RPC over the broker: questions to other processes, for instance what shipping costs. Never for effects."""

from typing import TYPE_CHECKING, Any

from messaging.exceptions import BadReply, ConnectionLost, NoBroker, NoServer, RemoteError, RpcError, RpcTimeout
from messaging.procedures import procedure

if TYPE_CHECKING:
    from messaging.rpc.client import acall, call

__all__ = [
    "BadReply",
    "ConnectionLost",
    "NoBroker",
    "NoServer",
    "RemoteError",
    "RpcError",
    "RpcTimeout",
    "acall",
    "call",
    "procedure",
]


def __getattr__(name: str) -> Any:
    # The client is imported when it is first used: declarations import this package, and most processes ask nothing.
    if name not in {"acall", "call"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from messaging.rpc import client

    return getattr(client, name)
