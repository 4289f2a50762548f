"""The project as it is, with the failpoints and the lowered values that `tests.support.failpoints.at` asks for."""

import json
import os

from messaging import conf
from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS as PROJECT_APPS
from project.settings import MESSAGING as PROJECT_MESSAGING

lowered = json.loads(os.environ.get("WARREN_TEST_MESSAGING") or "{}")
for name in lowered.keys() & vars(conf).keys():
    setattr(conf, name, lowered.pop(name))
MESSAGING = {**PROJECT_MESSAGING, **lowered}
INSTALLED_APPS = [*PROJECT_APPS, "tests.support.failpoints.FailpointsConfig"]
# What a visitor sees of an error, not what a developer does.
DEBUG = False
