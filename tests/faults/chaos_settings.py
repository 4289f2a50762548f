"""The settings of script/chaos, with the mutants that `tests.support.failpoints` puts into the processes."""

from script.programs.chaos.settings import *  # noqa: F403
from script.programs.chaos.settings import INSTALLED_APPS as CHAOS_APPS

INSTALLED_APPS = [*CHAOS_APPS, "tests.support.failpoints.FailpointsConfig"]
