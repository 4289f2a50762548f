"""What npm installs for the tests is pinned, by hash, and names no registry."""

import json
from pathlib import Path

import pytest

from script.services import foreign_clients


def test_the_lock_pins_each_package_by_hash_and_holds_no_address():
    text = (foreign_clients.DIRECTORY / "package-lock.json").read_text()
    lock = json.loads(text)
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert "node_modules/amqplib" in packages
    assert all(each["integrity"].startswith("sha512-") and "resolved" not in each for each in packages.values())
    assert "://" not in text


def test_a_changed_lock_is_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(foreign_clients, "DIRECTORY", tmp_path)
    monkeypatch.setattr(foreign_clients, "_STAMP", tmp_path / "node_modules" / ".installed")
    (tmp_path / "package.json").write_text('{"private": true}')
    lock = tmp_path / "package-lock.json"
    lock.write_text('{"lockfileVersion": 3, "packages": {"": {}}}')
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text('#!/bin/sh\nmkdir -p node_modules\necho "$@" >> asked\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent), prepend=":")

    foreign_clients.install_modules()
    foreign_clients.install_modules()
    assert (tmp_path / "asked").read_text().splitlines() == [
        "ci --ignore-scripts --no-audit --no-fund --loglevel=error"
    ]

    lock.write_text('{"lockfileVersion": 3, "packages": {"": {"name": "other"}}}')
    assert not foreign_clients.have_modules()
    foreign_clients.install_modules()
    assert foreign_clients.have_modules()
    assert len((tmp_path / "asked").read_text().splitlines()) == 2
