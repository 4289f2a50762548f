"""The only publisher of outbox rows. It knows rows and destinations, not handlers."""
