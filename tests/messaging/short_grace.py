"""The project as it is, but a handler that was told to end must do so at once."""

from project.settings import *  # noqa: F403
from project.settings import MESSAGING as PROJECT_MESSAGING

MESSAGING = {**PROJECT_MESSAGING, "HANDLER_GRACE": 0.2}
