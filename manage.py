#!/usr/bin/env python
"""Django's command line for Warren."""

import os
import sys

EXIT_USAGE = 2
EXIT_UNREACHABLE = 3


def main() -> int:
    """Run the command; a wrong setting or a database that is away is one clear line, not a traceback."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import DatabaseError, InterfaceError

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        return _explain(f"Configuration: {error}", EXIT_USAGE)
    except (DatabaseError, InterfaceError) as error:
        hint = "Is it running, is DATABASE_URL right, and was `manage.py migrate` run?"
        return _explain(f"Database: {str(error).strip()}\n{hint}", EXIT_UNREACHABLE)
    return 0


def _explain(text: str, code: int) -> int:
    if "--traceback" in sys.argv:
        raise
    sys.stderr.write(f"{text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
