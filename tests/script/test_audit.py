"""script/audit: what is known against a package fails it, and not to know is never taken for nothing to know."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from script.programs import audit
from script.services.ports import free_port
from tests.support.environment import ROOT

Answer = Callable[[str, Any], Any]


@pytest.fixture
def service() -> Iterator[Any]:
    """An advisory service: `service.answer` makes of path and question what it says; `service.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self) -> None:
            self._reply(None)

        def _reply(self, question: Any) -> None:
            answer = server.answer(self.path, question)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(200 if body else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def knows(*advisories: str) -> Answer:
    """What a service says that knows these about Django, and one about a package that is no good at all."""

    def about(query: Any) -> Any:
        found = {"django": advisories, "jinja2": ["GHSA-0"]}.get(query["package"]["name"], ())
        return {"vulns": [{"id": each} for each in found]} if found else {}

    def answer(path: str, question: Any) -> Any:
        if question is None:
            return {"id": path.rpartition("/")[2], "summary": "SQL injection in the query builder"}
        return {"results": [about(query) for query in question["queries"]]}

    return answer


def audited(service: Any, answer: Answer, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    service.answer = answer
    code = audit.main(["--service", service.url])
    return code, capsys.readouterr().out


def test_every_package_of_both_locks_is_asked_about_with_its_version(
    service: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def answer(path: str, question: Any) -> Any:
        asked.extend(question["queries"])
        return knows()(path, question)

    code, said = audited(service, answer, capsys)

    versions = {each["package"]["name"]: each["version"] for each in asked}
    assert {each["package"]["ecosystem"] for each in asked} == {"PyPI"}
    for lock in audit.LOCKS:
        lines = [line for line in (ROOT / lock).read_text().splitlines() if "==" in line and line[0].isalnum()]
        assert lines
        for line in lines:
            name, _, version = line.partition("==")
            assert versions[name.lower()] in version
    # One of them is no package of ours: a service that knows nothing against it cannot be believed.
    assert (code, said) == (0, f"{len(asked) - 1} packages asked about; 0 advisories that are not accepted.\n")


def test_what_is_known_against_a_package_fails_it_by_name(service: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = audited(service, knows("GHSA-1", "GHSA-2"), capsys)

    assert code == 1
    assert "GHSA-1: SQL injection" in said
    assert "GHSA-2" in said
    assert said.startswith("django ")


def test_an_accepted_advisory_is_shown_and_fails_nothing(
    service: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for lock in audit.LOCKS:
        shutil.copy(ROOT / lock, tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.audit.accepted]\nGHSA-1 = "we have no such thing"\n')
    monkeypatch.setattr(audit, "ROOT", tmp_path)

    code, said = audited(service, knows("GHSA-1"), capsys)
    assert (code, "GHSA-1: accepted: we have no such thing" in said) == (0, True)
    code, _ = audited(service, knows("GHSA-1", "GHSA-2"), capsys)
    assert code == 1


def test_no_service_is_said_loudly_and_is_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    code = audit.main(["--service", f"http://127.0.0.1:{free_port()}/v1"])

    assert code == 3
    assert "The dependencies were NOT audited" in capsys.readouterr().out


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"<html>log in to the network</html>",
        {},
        [],
        {"results": []},
        {"results": [{}]},
        {"results": {"a": 1}},
        {"results": [{"vulns": [1]}]},
        {"results": None},
    ],
    ids=repr,
)
def test_an_answer_to_something_else_is_no_pass(
    service: Any, capsys: pytest.CaptureFixture[str], nonsense: Any
) -> None:
    code, said = audited(service, lambda path, question: nonsense, capsys)

    assert code == 3
    assert "NOT audited" in said


def test_a_service_that_knows_nothing_at_all_is_not_believed(service: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = audited(service, lambda path, question: {"results": [{} for _ in question["queries"]]}, capsys)

    assert code == 3
    assert "does not know what is known of jinja2 2.4.1" in said


@pytest.mark.parametrize(("verdict", "code", "tested"), [(0, 0, True), (3, 0, True), (1, 1, False)])
def test_continuous_integration_fails_over_an_advisory_and_not_over_a_missing_network(
    tmp_path: Path, verdict: int, code: int, tested: bool
) -> None:
    for name, script in {"audit": f"exit {verdict}", "test": "echo tested"}.items():
        (tmp_path / "script").mkdir(exist_ok=True)
        (tmp_path / "script" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "script" / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")

    done = subprocess.run([tmp_path / ".ci/run"], capture_output=True, text=True, check=False)

    assert (done.returncode, "tested" in done.stdout) == (code, tested)
