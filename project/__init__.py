"""The Django project: it wires the two apps together and reads the environment, nothing else.

Celery finds its app in `project.celery`. It is not imported here: no other process sends a task, and each would pay a
fifth of a second for it at its start.
"""
