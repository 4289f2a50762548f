"""script/bootstrap: done once, and nothing is installed again."""

import shutil
import subprocess

from tests.support.environment import ROOT


def bootstrap(*arguments):
    command = [ROOT / "script" / "bootstrap", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_a_repeat_is_silent_runs_no_installer_and_leaves_the_environment_file():
    assert bootstrap("--dev").returncode == 0
    # The first is written whenever packages were installed.
    files = ROOT / ".venv" / "installed-requirements-dev.lock", ROOT / ".env"
    before = [file.stat().st_mtime_ns for file in files]
    again = bootstrap("--dev")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert [file.stat().st_mtime_ns for file in files] == before


def test_an_unknown_argument_is_a_usage_error():
    refused = bootstrap("--sideways")
    assert refused.returncode == 2
    assert "Usage: script/bootstrap" in refused.stderr
    assert "Usage: script/bootstrap" in bootstrap("--help").stdout


def test_an_environment_that_another_checkout_shares_by_a_link_is_left_alone(tmp_path):
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    (theirs / "bin").mkdir(parents=True)
    (theirs / "bin" / "python").write_text("theirs")
    (theirs / "installed-requirements.lock").write_text(f"{theirs}\n")
    (mine / "script").mkdir(parents=True)
    shutil.copy(ROOT / "script" / "bootstrap", mine / "script")
    (mine / "requirements.lock").touch()
    (mine / ".env.example").touch()
    (mine / ".venv").symlink_to(theirs)

    done = subprocess.run([mine / "script" / "bootstrap"], capture_output=True, text=True, check=False, timeout=300)

    assert done.returncode == 0, done.stderr
    assert (theirs / "bin" / "python").read_text() == "theirs"
    assert not (mine / ".venv").is_symlink()
