#!/usr/bin/env python
"""Django's command line for Warren."""

import atexit
import gc
import os
import sys

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
#: What a shell says of a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the command; a wrong setting or a database that is away is one clear line, not a traceback."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    # At its end Python would look through every object for cycles: a fifth of a short command's time.
    atexit.register(gc.freeze)
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
        from django.db import DatabaseError, InterfaceError
    except ImportError as error:
        return _explain(f"{error}. Run script/bootstrap once, then .venv/bin/python manage.py ...", EXIT_FAILED)

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        return _explain(f"Configuration: {error}", EXIT_USAGE)
    except (DatabaseError, InterfaceError) as error:
        reason = str(error).strip()
        hint = _cure(error) or "Is it running, is DATABASE_URL right, and was `manage.py migrate` run?"
        if reason == "unable to open database file":
            hint = "Is the folder of DATABASE_URL's file there, and may this user write in it?"
        return _explain(f"Database: {reason}\n{hint}", EXIT_UNREACHABLE)
    except KeyboardInterrupt:
        return _explain("Interrupted.", EXIT_INTERRUPTED)
    return 0


def _cure(error: Exception) -> str:
    try:
        from messaging.management.errors import cure
    except Exception:
        return ""  # the apps could not start: that is not what went wrong here
    return cure(error)


def _explain(text: str, code: int) -> int:
    if "--traceback" in sys.argv:
        raise
    sys.stderr.write(f"{text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
