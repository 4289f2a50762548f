"""`manage.py mq …`: the sub-commands, which `commands/mq.py` lists, and beside them what only they share.

Each sub-command has HELP, EXAMPLES, `add_arguments(parser)` and `run(command, options)`. What every command shares
(exit codes, tables, a quiet log) is one folder up.
"""
