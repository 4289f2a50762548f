"""Compares the database with the broker: finds what is lost or stuck, and sends lost messages again."""
