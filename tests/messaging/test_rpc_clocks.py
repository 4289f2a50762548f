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
                clocks.compare("rpc.double", procedures.now_ms(), reply_at(procedures.now_ms() + ahead))
    reasons = [line["reason"] for line in said if line["event"] == "rpc.clocks_differ"]
    assert len(reasons) == 2
    assert "10.0 s ahead" in reasons[0]
    assert reasons[1] == "they agree again"


def test_the_time_that_an_answer_takes_is_no_difference_of_clocks() -> None:
    clocks, now = Clocks(), procedures.now_ms()
    with capture_logs() as said:
        assert not clocks.compare("rpc.double", now - 60_000, reply_at(now - 30_000))
    assert (said, clocks.difference("rpc.double")) == ([], "")


def reply_at(clock: int) -> Message:
    return Message(body=b"2", headers={procedures.CLOCK_HEADER: clock})
