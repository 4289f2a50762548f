"""RPC over the broker: questions to other processes, for instance what shipping costs. Never for effects."""

from messaging.exceptions import BadReply, ConnectionLost, NoBroker, NoServer, RemoteError, RpcError, RpcTimeout
from messaging.procedures import procedure
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
