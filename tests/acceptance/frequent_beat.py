"""The project as it is, but for a housekeeper that comes each second."""

from project.settings import *  # noqa: F403
from project.settings import CELERY_BEAT_SCHEDULE as PROJECT_SCHEDULE

CELERY_BEAT_SCHEDULE = {name: {**entry, "schedule": 1.0} for name, entry in PROJECT_SCHEDULE.items()}
