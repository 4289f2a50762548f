"""RPC over the broker: questions to other processes, for instance what shipping costs. Never for effects."""

from messaging.rpc.exceptions import NoBroker, NoServer, RemoteError, RpcError, RpcTimeout
from messaging.rpc.procedures import procedure

__all__ = ["NoBroker", "NoServer", "RemoteError", "RpcError", "RpcTimeout", "procedure"]
