"""What a caller reports of clocks that differ from its own."""

from structlog.testing import capture_logs

from messaging import procedures
from messaging.message import Message
from messaging.rpc.clocks import Clocks


def test_two_servers_whose_clocks_differ_do_not_flood_the_log() -> None:
    clocks = Clocks()
    with capture_logs() as said:
        for _ in range(5):
            for ahead in (10_000, 0):
                reply = Message(body=b"2", headers={procedures.CLOCK_HEADER: procedures.now_ms() + ahead})
                clocks.compare("rpc.double", procedures.now_ms(), reply)
    reasons = [line["reason"] for line in said if line["event"] == "rpc.clocks_differ"]
    assert len(reasons) == 2
    assert "10.0 s ahead" in reasons[0]
    assert reasons[1] == "they agree again"
