"""script/chaos: the product comes out of it clean, and one that breaks a promise does not."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import failpoints
from tests.support.environment import ROOT

pytestmark = pytest.mark.timeout(900)
#: What each mutant is surest to be caught by, and the findings that it has to be caught with. One is tried each day:
#: the model finds the same bugs in milliseconds.
MUTANTS = [
    (failpoints.ack_before_commit, "kill-consumers-at-work", {"lost"}),
    pytest.param(failpoints.mark_before_confirm, "freeze-and-kill-broker", {"lost"}, marks=pytest.mark.full),
    pytest.param(failpoints.no_inbox, "copy-messages", {"duplicates"}, marks=pytest.mark.full),
]


def chaos(*arguments: str, mutant: Callable[[], None] | None = None) -> tuple[int, dict[str, Any]]:
    """Run it to its end and return its exit code and what its certificate says."""
    with tempfile.TemporaryDirectory(prefix="warren-test-") as directory:
        Path(directory).chmod(0o711)  # when root runs this, PostgreSQL's own user must be able to pass
        return _chaos(arguments, mutant, {**os.environ, "TMPDIR": directory})


def _chaos(
    arguments: Sequence[str], mutant: Callable[[], None] | None, environment: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "script.programs.chaos", "--json", *arguments]
    if mutant is not None:
        environment |= failpoints.at(mutant)
        command += ["--settings", "tests.faults.chaos_settings"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            shown, _ = process.communicate(timeout=350)
        except BaseException:
            process.send_signal(signal.SIGINT)  # so that it takes its world with it
            raise
    return process.returncode, json.loads(shown)


def off(certificate: dict[str, Any]) -> dict[str, list[str]]:
    return {name: found for name, found in certificate["findings"].items() if found}


def test_a_short_chaos_is_clean() -> None:
    code, certificate = chaos("--orders", "40", "--seconds", "9", "--seed", "3", "--every", "0.9")

    assert off(certificate) == {}
    assert certificate["drain_seconds"] is not None
    assert code == 0
    assert certificate["counts"]["orders"]["committed"] >= 40
    assert sum(certificate["faults"]["done"].values()) >= 5


@pytest.mark.parametrize(("mutant", "fault", "expected"), MUTANTS)
def test_chaos_notices_a_product_that_breaks_a_promise(
    mutant: Callable[[], None], fault: str, expected: set[str]
) -> None:
    faults = []
    # Which order a fault meets is a matter of chance: on a busy machine one run may pass by.
    for seed in "123":
        code, certificate = chaos(
            "--orders", "40", "--seconds", "7", "--seed", seed, "--every", "2", "--faults", fault, mutant=mutant
        )  # fmt: skip
        faults.append(certificate["faults"])
        if off(certificate):
            break

    assert expected <= set(off(certificate)), faults
    assert code == 1


@pytest.mark.full
def test_what_the_broker_threw_away_is_named_and_sent_again() -> None:
    code, certificate = chaos(
        "--orders", "40", "--seconds", "10", "--seed", "1", "--every", "4", "--faults", "purge-queues"
    )  # fmt: skip

    assert (code, off(certificate)) == (0, {})
    assert certificate["reconcile"]["lost_before"] > 0
    assert certificate["reconcile"]["named"] == certificate["reconcile"]["lost_before"]


@pytest.mark.full
@pytest.mark.parametrize("fault", ["kill-consumers-at-work", "freeze-and-kill-broker", "copy-messages"])
def test_the_product_is_clean_where_its_mutants_are_not(fault: str) -> None:
    code, certificate = chaos("--orders", "60", "--seconds", "30", "--seed", "1", "--every", "3", "--faults", fault)

    assert (code, off(certificate)) == (0, {})


@pytest.mark.full
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
@pytest.mark.parametrize("gateway", ["honours-keys", "can-be-asked", "deaf"])
def test_a_long_chaos_is_clean(database: str, gateway: str) -> None:
    code, certificate = chaos(
        "--orders", "2000", "--seconds", "400", "--every", "2", "--database", database, "--gateway", gateway
    )  # fmt: skip

    assert (code, off(certificate)) == (0, {})
