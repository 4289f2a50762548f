"""The Celery app. It keeps house (pruning); no order event ever travels through it.

`celery -A project` finds it here. To send a task by hand, import it first: `from project.celery import app`.
"""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Celery("warren")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
