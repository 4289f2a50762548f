"""A program of the demo that keeps ending during the start is given up, with the last line that it printed."""

import sys
from pathlib import Path

import pytest

from script.programs.demo import HOPELESS, still_starting
from script.services.owned import ServiceError, owned_pids
from script.services.supervision import Supervisor
from tests.support.waiting import eventually


def test_a_program_that_keeps_ending_is_given_up_with_its_last_line(tmp_path: Path) -> None:
    code = "import sys; print('Starting', flush=True); sys.exit('Configuration: X is wrong')"
    programs = {
        "consumer": (sys.executable, "-c", code),
        "web": (sys.executable, "-c", "import time; time.sleep(600)"),
    }
    supervisor = Supervisor(tmp_path / "demo", tmp_path, programs, {})
    consumer, web = supervisor.programs.values()
    try:
        eventually(lambda: supervisor.tend() or consumer.own_ends[1] >= HOPELESS, 60)
        assert not web.own_ends
        with pytest.raises(ServiceError, match=r"consumer ended \d+ times\. It says: Configuration: X is wrong\."):
            still_starting(supervisor, None)
    finally:
        supervisor.stop(10)
    assert owned_pids(tmp_path / "demo") == []
