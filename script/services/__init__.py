"""Private services: a RabbitMQ node and a PostgreSQL cluster, each belonging to one directory alone."""
