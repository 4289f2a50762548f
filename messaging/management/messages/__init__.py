"""`manage.py messages …`, a file for each sub-command.

Each has HELP, EXAMPLES, `add_arguments(parser)` and `run(command, options)`.
"""
