"""The classic RabbitMQ lessons, done with this project's commands. An app of its own: a project adds it if it wants."""
