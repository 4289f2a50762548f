"""Installing Debian packages starts nothing on the machine, and leaves its policy as it was."""

import pytest

from script.services import packages
from script.services.owned import ServiceError


@pytest.fixture
def policy(tmp_path, monkeypatch):
    path = tmp_path / "policy-rc.d"
    monkeypatch.setattr(packages, "POLICY", path)
    return path


def test_services_stay_down_while_packages_are_installed(policy):
    with packages.services_stay_down():
        assert "exit 101" in policy.read_text()
        assert policy.stat().st_mode & 0o111
    assert not policy.exists()


def test_the_machine_s_own_policy_is_put_back_even_after_a_failure(policy):
    policy.write_text("own")
    policy.chmod(0o744)
    with pytest.raises(RuntimeError), packages.services_stay_down():
        raise RuntimeError
    assert policy.read_text() == "own"
    assert policy.stat().st_mode & 0o777 == 0o744


def test_without_root_the_error_says_what_to_type(monkeypatch):
    monkeypatch.setattr(packages, "may_install", lambda: False)
    with pytest.raises(ServiceError, match="apt-get install rabbitmq-server"):
        packages.install("rabbitmq-server")
