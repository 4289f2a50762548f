"""The project as it is, but for a lease that ends within a test's patience."""

from project.settings import *  # noqa: F403
from project.settings import MESSAGING as PROJECT_MESSAGING

MESSAGING = {**PROJECT_MESSAGING, "LEASE": 3, "PUBLISH_TIMEOUT": 1}
