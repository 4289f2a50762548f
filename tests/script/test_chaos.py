"""script/chaos as a program: its plan, its shoppers' wishes, what it refuses, and that it leaves nothing behind."""

import os
import re
import signal
import sys
from pathlib import Path

import phonenumbers
import pytest

from script.programs.chaos.__main__ import main
from script.programs.chaos.faults import FAULTS, available
from script.programs.chaos.monkey import plan
from script.programs.chaos.shoppers import wishes
from script.services.owned import OWNER
from tests.support.processes import RunningProcess
from tests.support.waiting import eventually


def test_one_seed_means_one_plan() -> None:
    names = available("postgresql")

    assert plan(7, 300, 3, names) == plan(7, 300, 3, names)
    assert plan(7, 300, 3, names) != plan(8, 300, 3, names)


def test_a_plan_keeps_to_its_time_its_faults_and_their_lengths() -> None:
    planned = plan(7, 3000, 1, available("postgresql"))

    assert {each.fault for each in planned} == {name for name, fault in FAULTS.items() if not fault.loses}
    assert all(FAULTS[each.fault].seconds[0] <= each.seconds <= FAULTS[each.fault].seconds[1] for each in planned)
    assert all(0 <= each.at < 3000 for each in planned)
    assert 2700 < len(planned) < 3300
    assert {each.fault for each in plan(7, 60, 1, ["kill-web"])} == {"kill-web"}


def test_sqlite_has_no_server_to_crash() -> None:
    assert set(available("postgresql")) - set(available("sqlite")) == {
        "crash-database", "end-database-sessions", "cut-database-line", "stall-database-line",
    }  # fmt: skip


@pytest.mark.parametrize("orders", [1, 2, 19, 60, 2000])
def test_all_orders_want_the_plentiful_product_and_some_more_the_scarce_one(orders: int) -> None:
    made = wishes(orders)
    hunting = [wish for wish in made if wish.slug == "scarce"]

    assert len(made) - len(hunting) == orders
    assert len(hunting) == max(2, orders // 20)
    assert len({wish.phone for wish in made}) == len({wish.name for wish in made}) == len(made)
    assert all(phonenumbers.is_valid_number(phonenumbers.parse(wish.phone)) for wish in made)


def test_the_plan_can_be_looked_at_and_is_the_same_again(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for _ in range(2):
        assert main(["--plan", "--seconds", "20", "--seed", "5"]) == 0
        shown.append(capsys.readouterr().out)

    assert shown[0] == shown[1]
    assert re.match(r" +1\.0 s  [a-z-]+ +[\d.]+ s  0\.\d{3}\n", shown[0])
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN, "a broken connection would end this process"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--orders", "0"], "--orders"),
        (["--seconds", "soon"], "--seconds"),
        (["--every", "0"], "--every"),
        (["--faults", "kill-web,earthquake"], "there is no fault earthquake"),
        (["--database", "oracle"], "--database"),
    ],
)
def test_wrong_arguments_are_a_usage_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.full
def test_interrupted_in_the_middle_it_leaves_nothing_running_and_no_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    running = RunningProcess(
        [sys.executable, "-m", "script.programs.chaos", "--orders", "300", "--seconds", "60", "--every", "1"],
        environment,
    )
    try:
        running.wait_for_line("[1-9]+ placed.*[1-9] faults", 150)
        assert started_in(tmp_path)

        running.send(signal.SIGINT)

        assert running.wait(90) == 130
        assert "Nothing is left running." in running.lines[-1]
    finally:
        if running.is_alive:
            running.kill()
    eventually(lambda: started_in(tmp_path) == [])
    assert list(tmp_path.iterdir()) == []


def started_in(directory: Path) -> list[int]:
    """The processes that belong to a directory below this one."""
    mark = f"{OWNER}={directory}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                content = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(part.startswith(mark) for part in content.split(b"\0")):
                found.append(int(entry.name))
    return found
