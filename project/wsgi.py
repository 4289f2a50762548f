"""WSGI entry point: `gunicorn project.wsgi`."""

import os
from importlib import import_module

from django.conf import settings
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
application = get_wsgi_application()

# Imported before the first request, which would wait for it.
import_module(settings.ROOT_URLCONF)
