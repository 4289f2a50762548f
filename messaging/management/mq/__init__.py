"""The sub-commands of `manage.py mq`: each has HELP, EXAMPLES, add_arguments(parser) and run(command, options)."""
