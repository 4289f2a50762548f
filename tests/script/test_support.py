"""The tests' own tools: waiting, processes, the database they share."""

import signal
import sqlite3

import pytest
from django.contrib.auth.models import Group

from tests.support.environment import database_url
from tests.support.waiting import eventually


def test_eventually_returns_what_the_condition_returned():
    answers = iter([None, 0, "there"])
    assert eventually(lambda: next(answers)) == "there"


def test_eventually_says_what_it_waited_for_and_what_it_found():
    with pytest.raises(AssertionError, match=r"Not within 0.05 s: .*len\(\[\]\) == 1.*\n.*returned False\nthe report"):
        eventually(lambda: len([]) == 1, 0.05, report=lambda: "the report")


def test_eventually_takes_a_failed_assertion_for_not_yet():
    attempts = []

    def third_time():
        attempts.append(1)
        assert len(attempts) == 3, "too early"
        return True

    assert eventually(third_time)


def test_a_process_sees_what_the_test_committed_and_the_test_what_it_committed(run_process):
    Group.objects.create(name="from the test")
    code = (
        "from django.contrib.auth.models import Group as G; "
        "print([g.name for g in G.objects.all()]); G(name='from the process').save()"
    )
    process = run_process("shell", "-c", code)
    process.wait_for_line("from the test")
    assert process.wait() == 0
    assert Group.objects.filter(name="from the process").exists()


def test_the_next_test_finds_the_database_empty_again(transactional_db):
    assert not Group.objects.exists()


@pytest.mark.only_on("sqlite")
def test_the_sqlite_test_database_is_a_file(db):
    with sqlite3.connect(database_url().removeprefix("sqlite:///")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_line_that_never_comes_is_reported_with_the_output(run_process):
    process = run_process.program("sh", "-c", "echo one; echo two >&2")
    with pytest.raises(AssertionError, match=r"ended without a line like 'three'.*\none\ntwo"):
        process.wait_for_line("three")


def test_a_process_can_be_signalled(run_process):
    process = run_process.program(
        "sh", "-c", "trap 'echo stopping; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    )
    process.wait_for_line("ready")
    assert process.stop() == 5
    process.wait_for_line("stopping")


def test_killing_a_process_reaches_its_children(run_process):
    process = run_process.program("sh", "-c", "sleep 60 & echo child $!; wait")
    process.wait_for_line(r"child \d+")
    process.kill()
    assert not process.is_alive
    assert process.wait() == -signal.SIGKILL


def test_gunicorn_serves_the_project(run_process):
    web = run_process.web(workers=1)
    assert web.stop() == 0


def test_processes_are_given_the_vhost_of_the_test(run_process, vhost):
    process = run_process("shell", "-c", "from django.conf import settings; print(settings.MESSAGING['AMQP_URLS'])")
    process.wait_for_line(vhost.rpartition("/")[2])
