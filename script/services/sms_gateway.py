"""A private SMS gateway in a process of its own: it sends texts into a ledger, and misbehaves when told to.

The shop's text messages are tested against it: the texts that it really sent can be counted, and it can fail in every
way in which an outside service fails. `sms_gateway_server` describes its HTTP interface.
"""

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from script.environment import ROOT
from script.services.ports import answers, free_again, free_port
from script.services.service import Service
from script.services.sms_gateway_ledger import PASSING, Fault, SmsLedger

#: Seconds by which a fault that delays something delays it.
DELAY = 5.0


class SmsGateway(Service):
    """A gateway that lives in a directory; its address, token and ledger outlive its process.

    A gateway that `honours_keys` sends one text per Idempotency-Key, however often it is asked; the other kind sends a
    text for each request that it accepts. A gateway that `can_be_asked` says whether the text of a key was sent.
    """

    title = "The SMS gateway"
    state_file = "gateway.json"

    def __init__(self, directory: Path, *, honours_keys: bool = True, can_be_asked: bool = True) -> None:
        super().__init__(directory)
        self.honours_keys = honours_keys
        self.can_be_asked = can_be_asked
        #: What it was asked and what it sent; may be read at any time.
        self.ledger = SmsLedger(self.directory / "ledger.sqlite3")

    @property
    def address(self) -> str:
        """Scheme, host and port; they stay the same over restarts."""
        return f"http://127.0.0.1:{self._state.read()['port']}"

    @property
    def url(self) -> str:
        """Where a text message is posted to."""
        return f"{self.address}/messages"

    @property
    def token(self) -> str:
        """The token that it expects in `Authorization: Bearer …`."""
        return str(self._state.read()["token"])

    def environment(self, *, timeout: float = 2) -> dict[str, str]:
        """Return the environment in which the shop sends its texts here, and waits `timeout` seconds for an answer."""
        return {
            "SMS_BACKEND": "orders.sms.GatewayBackend",
            "SMS_GATEWAY_URL": self.url,
            "SMS_GATEWAY_TOKEN": self.token,
            "SMS_GATEWAY_TIMEOUT": f"{timeout:g}",
            "SMS_GATEWAY_HONOURS_KEYS": "1" if self.honours_keys else "0",
            "SMS_GATEWAY_ASK_URL": f"{self.url}?key={{key}}" if self.can_be_asked else "",
        }

    def start(self, patience: float = 30) -> None:
        """Start the server unless it runs, and return when it takes connections; it begins well-behaved.

        Raises `ServiceError` if it ends, or does not listen after `patience` seconds.
        """
        if self.pid is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.ledger.create()
            self._prepare()
            command = [sys.executable, "-m", "script.services.sms_gateway_server", str(self.directory)]
            self._state.save(pid=self._start_process(command, home=ROOT).pid)
        self._wait_until(lambda: answers(self._state.read()["port"]), patience)

    def _prepare(self) -> None:
        state = self._state.read()
        port = state.get("port")
        if port is None or not free_again(port):
            port = free_port()
        token = state.get("token") or secrets.token_urlsafe(18)
        kind = {"honours_keys": self.honours_keys, "can_be_asked": self.can_be_asked}
        self._state.save(port=port, token=token, pid=None, **kind)

    def misbehave(self, fault: Fault, *, times: int | None = 1, seconds: float = DELAY, method: str = "POST") -> None:
        """Let the next `times` requests meet `fault` (None: every request from then on), after those asked for before.

        `seconds` is the delay of a fault that delays something. `method` is POST, to send, or GET, to ask.
        """
        self.ledger.misbehave([fault], method=method, times=times, seconds=seconds, chance=1, seed=0)

    def misbehave_at_random(
        self, faults: Sequence[Fault] = PASSING, *, chance: float, seed: int, seconds: float = DELAY
    ) -> None:
        """Let each request to send meet one of `faults` with a chance from 0 to 1. One seed, one sequence of faults."""
        self.ledger.misbehave(faults, method="POST", times=None, seconds=seconds, chance=chance, seed=seed)

    def behave(self) -> None:
        """From the next request on, serve well. Delays that have begun continue."""
        self.ledger.behave()
