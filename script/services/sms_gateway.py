"""An SMS gateway of our own, in a process of its own: it sends texts into a ledger, and misbehaves when told.

It is what a shop's text messages are tried against: what it really sent can be counted, and every way in which an
outside service fails can be asked for. Its HTTP interface is described in `sms_gateway_server`.
"""

import json
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from script.services.owned import (
    POLL_INTERVAL,
    ServiceError,
    belongs,
    end,
    end_all,
    signal_owned,
    start_owned,
    tail,
)
from script.services.ports import answers, free_again, free_port
from script.services.sms_gateway_faults import PASSING, Fault, Misbehaviour
from script.services.sms_gateway_ledger import SmsLedger
from script.services.state import StateFile

ROOT = Path(__file__).resolve().parents[2]


class SmsGateway:
    """A gateway that lives in `directory`; its address, token and ledger outlive its process.

    One that `honours_keys` sends one text per Idempotency-Key, however often it is asked; the other kind sends one
    for each request that it accepts. One that `can_be_asked` says whether a key was sent.
    """

    def __init__(self, directory: Path, *, honours_keys: bool = True, can_be_asked: bool = True) -> None:
        self.directory = directory.resolve()
        self.honours_keys = honours_keys
        self.can_be_asked = can_be_asked
        #: What it was asked and what it sent; may be read at any time.
        self.ledger = SmsLedger(self.directory / "ledger.sqlite3")
        self._state = StateFile(self.directory / "gateway.json")
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "SmsGateway":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # Address

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
        """What it wants in `Authorization: Bearer …`."""
        return str(self._state.read()["token"])

    @property
    def pid(self) -> int | None:
        """The pid of the running server, or None."""
        pid = self._state.read().get("pid")
        return pid if isinstance(pid, int) and belongs(pid, self.directory) else None

    @property
    def log(self) -> Path:
        """What the server prints: nothing, unless it has a fault of its own."""
        return self.directory / "output.log"

    def environment(self, *, timeout: float = 2) -> dict[str, str]:
        """The environment in which the shop sends its texts here, and waits `timeout` seconds for an answer."""
        return {
            "SMS_BACKEND": "orders.sms.GatewayBackend",
            "SMS_GATEWAY_URL": self.url,
            "SMS_GATEWAY_TOKEN": self.token,
            "SMS_GATEWAY_TIMEOUT": f"{timeout:g}",
            "SMS_GATEWAY_HONOURS_KEYS": "1" if self.honours_keys else "0",
            "SMS_GATEWAY_ASK_URL": f"{self.url}?key={{key}}" if self.can_be_asked else "",
        }

    # Life

    def start(self, patience: float = 30) -> None:
        """Start the server, if it does not run, and return when it takes connections; it begins well-behaved.

        Raises `ServiceError` if it ends, or does not listen after `patience` seconds.
        """
        if self.pid is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._prepare()
            command = [sys.executable, "-m", "script.services.sms_gateway_server", str(self.directory)]
            self._server = start_owned(command, self.directory, log=self.log, home=ROOT)
            self._state.save(pid=self._server.pid)
        deadline = time.monotonic() + patience
        while not answers(self._state.read()["port"]):
            if self._server is not None and self._server.poll() is not None:
                raise ServiceError(f"The SMS gateway ended while starting. {self.log} says:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServiceError(f"The SMS gateway did not listen in {patience:.0f} s:\n{tail(self.log)}")
            time.sleep(POLL_INTERVAL)

    def stop(self) -> None:
        """End the server, whoever started it. Connections are cut; the ledger stays."""
        self._end(signal.SIGTERM)
        end_all(self.directory, how=signal.SIGKILL)

    def kill(self) -> None:
        """kill -9; `start` brings it back on the same port, with its ledger."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections are taken by the kernel and nothing answers, until `resume`."""
        pid = self.pid
        if pid is None or not signal_owned(pid, self.directory, signal.SIGSTOP):
            raise ServiceError("The SMS gateway does not run: it cannot be paused.")

    def resume(self) -> None:
        """Let a paused one go on."""
        pid = self.pid
        if pid is not None:
            signal_owned(pid, self.directory, signal.SIGCONT)

    # Misbehaving

    def misbehave(
        self, fault: Fault, *, times: int | None = 1, seconds: float = Misbehaviour.seconds, method: str = "POST"
    ) -> None:
        """Let the next `times` requests meet `fault` (None: every one from then on); asked for again, they queue up.

        `seconds` is how long whatever the fault delays takes. `method` is POST, to send, or GET, to ask.
        """
        self._control("misbehave", fault=fault, times=times, seconds=seconds, method=method)

    def misbehave_at_random(
        self, faults: Sequence[Fault] = PASSING, *, chance: float, seed: int, seconds: float = Misbehaviour.seconds
    ) -> None:
        """Let each request to send meet one of `faults` with a chance from 0 to 1. One seed, one sequence of faults."""
        choices = [{"fault": fault, "seconds": seconds} for fault in faults]
        self._control("misbehave-at-random", choices=choices, chance=chance, seed=seed)

    def behave(self) -> None:
        """From the next request on, serve well. What is delayed already stays so."""
        self._control("behave")

    def _control(self, command: str, **content: Any) -> None:
        request = urllib.request.Request(  # noqa: S310 (the address is our own)
            f"{self.address}/control/{command}",
            json.dumps(content).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310

    # How it starts and ends

    def _prepare(self) -> None:
        state = self._state.read()
        port = state.get("port")
        if port is None or not free_again(port):
            port = free_port()
        token = state.get("token") or secrets.token_urlsafe(18)
        kind = {"honours_keys": self.honours_keys, "can_be_asked": self.can_be_asked}
        self._state.save(port=port, token=token, pid=None, **kind)

    def _end(self, how: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            self.resume()
            end(pid, self.directory, how=how, patience=5)
        if self._server is not None:
            self._server.wait(10)
            self._server = None
