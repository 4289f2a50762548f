"""script/audit: a known vulnerability fails it, and a service that cannot be asked never counts as a pass."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.support.environment import ROOT

LOCKS = {
    "requirements.lock": "django==5.2.1 \\\n    --hash=sha256:00\n    # via warren\n",
    "requirements-dev.lock": "django==5.2.1 \\\n    --hash=sha256:00\ncolorama==0.4.6 ; sys_platform == 'win32' \\\n",
}
KNOWN_VULNERABLE = {("jinja2", "2.4.1"): "PYSEC-2014-8"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with two small locks, whose environment is ready."""
    (tmp_path / "script").mkdir()
    shutil.copy(ROOT / "script/audit", tmp_path / "script")
    (tmp_path / "script/bootstrap").write_text("#!/bin/sh\n")
    (tmp_path / "script/bootstrap").chmod(0o755)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    for name, content in LOCKS.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def osv(server: HTTPServer, known: dict[tuple[str, str], str]) -> list[tuple[str, str]]:
    """Let `server` answer as OSV does when it knows one advisory each about these versions; return what it is asked."""
    asked = []

    def answer(request: Request) -> Response:
        query = json.loads(request.get_data())
        package = query["package"]["name"], query["version"]
        asked.append(package)
        if package not in known:
            return Response("{}")
        advisory = {"id": known[package], "summary": "SQL injection", "affected": []}
        return Response(json.dumps({"vulns": [advisory]}))

    server.expect_request("/v1/query").respond_with_handler(answer)
    return asked


def audited(checkout: Path, url: str) -> tuple[int, str]:
    command = [checkout / "script/audit", "--osv-url", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, done.stdout + done.stderr


def test_every_locked_package_is_asked_about_whatever_platform_it_is_for(
    checkout: Path, httpserver: HTTPServer
) -> None:
    asked = osv(httpserver, KNOWN_VULNERABLE)

    code, said = audited(checkout, httpserver.url_for("/v1/query"))

    assert (code, said) == (0, "No known vulnerabilities found\n2 packages were audited.\n")
    assert asked == [("jinja2", "2.4.1"), ("colorama", "0.4.6"), ("django", "5.2.1")]


def test_a_known_vulnerability_fails_the_audit_by_name_unless_it_is_accepted(
    checkout: Path, httpserver: HTTPServer
) -> None:
    osv(httpserver, {**KNOWN_VULNERABLE, ("django", "5.2.1"): "GHSA-1", ("colorama", "0.4.6"): "GHSA-2"})
    script = checkout / "script/audit"
    script.write_text(script.read_text().replace('ACCEPTED=""', 'ACCEPTED="--ignore-vuln GHSA-1"'))

    code, said = audited(checkout, httpserver.url_for("/v1/query"))

    assert (code, "GHSA-1" in said, "GHSA-2" in said) == (1, False, True)
    assert "NOT audited" not in said


def test_a_service_that_knows_nothing_at_all_is_not_believed(checkout: Path, httpserver: HTTPServer) -> None:
    osv(httpserver, {})

    code, said = audited(checkout, httpserver.url_for("/v1/query"))

    assert (code, "NOT audited" in said) == (3, True)


@pytest.mark.parametrize(("audit", "code", "tested"), [(0, 0, True), (3, 0, True), (1, 1, False)])
def test_continuous_integration_fails_over_an_advisory_and_not_over_a_missing_network(
    tmp_path: Path, audit: int, code: int, tested: bool
) -> None:
    for name, script in {"audit": f"exit {audit}", "test": "echo tested"}.items():
        (tmp_path / "script").mkdir(exist_ok=True)
        (tmp_path / "script" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "script" / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")

    done = subprocess.run([tmp_path / ".ci/run"], capture_output=True, text=True, check=False)

    assert (done.returncode, "tested" in done.stdout) == (code, tested)
