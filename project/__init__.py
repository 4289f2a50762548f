"""The Django project: it wires the two apps together and reads the environment, nothing else."""

from project.celery import app as celery_app

__all__ = ["celery_app"]
