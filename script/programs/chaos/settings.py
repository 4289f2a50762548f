"""The project's settings, with short deadlines so that rest comes soon, and one more consumer."""

from messaging import conf
from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS as PROJECT_APPS
from project.settings import MESSAGING as PROJECT_MESSAGING
from project.settings import STORAGES as PROJECT_STORAGES

INSTALLED_APPS = [*PROJECT_APPS, "script.programs.chaos.naive"]
conf.POLL_INTERVAL, conf.DECLARE_INTERVAL, conf.RECONNECT_MAX, conf.RECONCILE_INTERVAL = 0.5, 2, 2, 5
conf.HEARTBEAT = 4
MESSAGING = {
    **PROJECT_MESSAGING,
    "LEASE": 8,
    "PUBLISH_TIMEOUT": 3,
    "CONNECT_TIMEOUT": 3,
    "RECONCILE_AFTER": 2,
}
# Static files are not collected here.
STORAGES = {
    **PROJECT_STORAGES,
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# All shoppers come from this machine.
ORDERS_PER_PHONE = ORDERS_PER_PHONE_A_DAY = ORDERS_PER_BROWSER = ORDERS_PER_ADDRESS = 0
