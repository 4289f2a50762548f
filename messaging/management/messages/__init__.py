"""`manage.py messages …`, a file for each sub-command.

Each has EXAMPLES, `add_arguments(parser)` and `run(command, options)`.
"""
