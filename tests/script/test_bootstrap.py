"""script/bootstrap: done once, and nothing is installed again."""

import os
import pty
import shutil
import subprocess

import pytest

from tests.support.environment import ROOT

#: Stands for the Python of .venv: it says what pip says, and ends as it is told to.
PYTHON = """#!/bin/sh
case "$*" in
    "-m pip install"*)
        printf '%s\\n' 'Collecting a==1' 'Collecting b==2' 'Installing collected packages: a, b'
        exit "$PIP_ENDS" ;;
esac
"""


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


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "script").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("bootstrap", "test", "demo"):
        shutil.copy(ROOT / "script" / name, tmp_path / "script")
    (tmp_path / "requirements.lock").write_text("a==1\nb==2\n")
    (tmp_path / ".env.example").touch()
    return tmp_path


def seen_on_a_terminal(checkout, pip_ends):
    """The exit code of script/bootstrap, and what a person sees."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PIP_ENDS": str(pip_ends)}
    code = subprocess.call(
        [checkout / "script" / "bootstrap"], stdout=theirs, stderr=theirs, env=environment, timeout=60
    )
    os.close(theirs)
    try:
        return code, os.read(ours, 65536).decode()
    finally:
        os.close(ours)


def test_a_person_sees_how_far_the_installation_is(checkout):
    code, seen = seen_on_a_terminal(checkout, pip_ends=0)
    assert code == 0
    for step in (
        "1 of 2 packages fetched ...",
        "2 of 2 packages fetched ...",
        "2 packages fetched, unpacking them ...",
    ):
        assert f"\r\x1b[K{step}" in seen
    assert (checkout / ".venv" / "installed-requirements.lock").exists()


def test_an_installation_that_fails_shows_what_pip_said_and_is_repeated(checkout):
    code, seen = seen_on_a_terminal(checkout, pip_ends=1)
    assert code == 1
    assert "Collecting b==2\r\nInstalling collected packages: a, b\r\npip has failed." in seen
    assert not (checkout / ".venv" / "installed-requirements.lock").exists()


@pytest.mark.parametrize("arguments", [["test", "--help"], ["test", "tests/orders", "-h"], ["demo", "--help"]])
def test_a_help_installs_nothing(checkout, arguments):
    shutil.rmtree(checkout / ".venv")
    name, *rest = arguments
    done = subprocess.run([checkout / "script" / name, *rest], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: script/{name}")
    assert not (checkout / ".venv").exists()
    assert not (checkout / "var").exists()


def test_an_argument_that_the_demo_does_not_know_is_refused_before_anything_is_installed(checkout):
    done = subprocess.run(
        [checkout / "script" / "demo", "--fast"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: script/demo")
    assert not (checkout / "var").exists()
