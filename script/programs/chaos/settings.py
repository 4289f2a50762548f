"""The project as it is, with deadlines so short that quiet comes soon, and one more consumer."""

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS as PROJECT_APPS
from project.settings import MESSAGING as PROJECT_MESSAGING
from project.settings import STORAGES as PROJECT_STORAGES

INSTALLED_APPS = [*PROJECT_APPS, "script.programs.chaos.naive"]
MESSAGING = {
    **PROJECT_MESSAGING,
    "LEASE": 8,
    "PUBLISH_TIMEOUT": 3,
    "POLL_INTERVAL": 0.5,
    "DECLARE_INTERVAL": 2,
    "CONNECT_TIMEOUT": 3,
    "HEARTBEAT": 4,
    "RECONNECT_MAX": 2,
    "RECONCILE_AFTER": 2,
    "RECONCILE_INTERVAL": 5,
}
# Nobody collected static files, and nobody looks at them.
STORAGES = {
    **PROJECT_STORAGES,
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# All shoppers come from this machine.
ORDERS_PER_PHONE = ORDERS_PER_PHONE_A_DAY = ORDERS_PER_BROWSER = ORDERS_PER_ADDRESS = 0
