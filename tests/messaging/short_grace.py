"""The project as it is, but a handler that was told to end must do so at once."""

from messaging import conf
from project.settings import *  # noqa: F403

conf.HANDLER_GRACE = 0.2
