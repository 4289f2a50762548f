"""The Django project that is measured: one order, one event, one consumer. Every variant does its work with it."""
