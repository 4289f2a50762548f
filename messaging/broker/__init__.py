"""The only pika and the only HTTP to RabbitMQ. No AMQP reply code and no type of pika leaves this package."""
