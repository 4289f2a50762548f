"""The border to RabbitMQ. Only this folder imports pika, and no pika error leaves it."""
