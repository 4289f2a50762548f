"""Compares the database with the broker: finds messages that are lost or stuck, and sends lost ones again."""
