"""What applications import from `messaging` itself."""

import subprocess
import sys

import messaging
from tests.support.environment import ROOT


def test_every_public_name_is_that_of_its_module() -> None:
    from messaging import outbox
    from messaging.consumers import consumer
    from messaging.events import Event

    assert (messaging.Event, messaging.consumer, messaging.outbox) == (Event, consumer, outbox)
    assert all(getattr(messaging, name) for name in messaging.__all__)
    assert not hasattr(messaging, "nothing")


def test_declarations_can_be_imported_before_the_apps_are_ready() -> None:
    """And without settings: `outbox`, `rpc` and `testing` need models."""
    names = ", ".join(name for name in messaging.__all__ if name not in {"outbox", "rpc", "testing"})
    code = f"from messaging import {names}; from django.apps import apps; assert not apps.models_ready"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={"PYTHONPATH": str(ROOT)}, timeout=60)
