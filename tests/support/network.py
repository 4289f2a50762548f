"""The network in front of the shared broker, for tests of what clients do without one."""

from script.services.tcp_proxy import TcpProxy


class BrokerNetwork(TcpProxy):
    """To a client a stalled network is a frozen broker, and a port where nothing listens a broker that is gone.

    The broker itself goes on, so that no test has to boot one.
    """

    def start(self, port: int = 0) -> None:
        """Listen; after `kill` on the same port as before."""
        super().start(port or self._port)

    def kill(self) -> None:
        """Reset all connections, and let nothing listen, until `start`."""
        self.stop()

    def pause(self) -> None:
        """Pass nothing on until `resume`."""
        self.stall()

    def resume(self) -> None:
        """Pass everything on again."""
        self.heal()
