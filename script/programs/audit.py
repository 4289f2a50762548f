"""script/audit: has any locked package a known vulnerability?

It asks OSV (https://osv.dev), which gathers PyPI's and GitHub's advisories, about all packages at once. "Nobody could
be asked" is an answer of its own, and never passes for "nothing is known".
"""

import json
import re
import sys
import tomllib
import urllib.request
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-mutation.lock")
SERVICE = "https://api.osv.dev/v1"
#: Seconds to wait for each answer.
PATIENCE = 20
EXIT_VULNERABLE, EXIT_NOT_ASKED = 1, 3

EPILOG = """
An advisory that does not concern us is accepted in pyproject.toml, with the reason:
  [tool.audit.accepted]
  GHSA-xxxx-xxxx-xxxx = "only its command line is affected; we do not use it"

Exit codes: 0 nothing is known against any package, 1 something is, 3 nobody could be asked: it may be either.
"""


class NotAsked(Exception):
    """The service did not answer, or not what was asked."""


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """A package of a lock."""

    name: str
    version: str


#: Asked about with the others. Of this one much is known: a service that knows nothing of it knows nothing.
CANARY = Package("jinja2", "2.4.1")


def main(arguments: Sequence[str]) -> int:
    """Ask about every locked package, print what is known, and return the exit code."""
    parser = ArgumentParser(
        prog="script/audit", description="Ask OSV whether a locked package has a known vulnerability.",
        epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--service", default=SERVICE, metavar="URL", help=f"OSV or a copy of it (default {SERVICE})")
    service = parser.parse_args(arguments).service
    packages = locked()
    try:
        found = advisories(packages, service)
    except NotAsked as error:
        line = "!" * 100
        print(f"{line}\nThe dependencies were NOT audited: {error}.\nNothing is known about them.\n{line}")
        return EXIT_NOT_ASKED
    accepted = _accepted()
    open_ones = [(package, each) for package, ids in found.items() for each in ids if each not in accepted]
    for package, ids in found.items():
        for each in ids:
            note = f"accepted: {accepted[each]}" if each in accepted else _summary(each, service)
            print(f"{package.name} {package.version}: {each}: {note}")
    print(f"{len(packages)} packages asked about; {len(open_ones)} advisories that are not accepted.")
    return EXIT_VULNERABLE if open_ones else 0


def locked() -> list[Package]:
    """Return the packages of all locks, each once."""
    found = set()
    for lock in LOCKS:
        for name, version in re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", (ROOT / lock).read_text(), re.MULTILINE):
            found.add(Package(name.lower(), version))
    return sorted(found)


def advisories(packages: Sequence[Package], service: str) -> dict[Package, list[str]]:
    """Return the ids of the advisories about each package that has some. Raises NotAsked."""
    asked = [*packages, CANARY]
    query = [{"package": {"name": each.name, "ecosystem": "PyPI"}, "version": each.version} for each in asked]
    try:
        results = _ask(f"{service}/querybatch", {"queries": query})["results"]
        # A further page only adds to what is known against a package: the first is enough to fail.
        ids = [[str(each["id"]) for each in (result or {}).get("vulns") or []] for result in results]
    except (KeyError, TypeError, AttributeError):
        raise NotAsked(f"{service} answered something else than was asked") from None
    if len(ids) != len(asked) or not ids.pop():
        raise NotAsked(f"{service} does not know what is known of {CANARY.name} {CANARY.version}")
    return {package: found for package, found in zip(packages, ids, strict=True) if found}


def _summary(advisory: str, service: str) -> str:
    """Return what an advisory is about, if that can be had."""
    try:
        facts = _ask(f"{service}/vulns/{advisory}")
    except NotAsked:
        return f"see https://osv.dev/{advisory}"
    return str(facts.get("summary") or facts.get("details") or "")[:200].partition("\n")[0]


def _ask(url: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
    body = json.dumps(question).encode() if question else None
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 (a fixed service)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310
            answer = json.load(response)
    except (OSError, HTTPException, ValueError) as error:
        raise NotAsked(f"{url}: {error}") from None
    if not isinstance(answer, dict):
        raise NotAsked(f"{url} answered something else than was asked")
    return answer


def _accepted() -> dict[str, str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    accepted: dict[str, str] = settings.get("tool", {}).get("audit", {}).get("accepted", {})
    return accepted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
