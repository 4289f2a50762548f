"""The shop: catalogue, cart, orders, red packets and text messages.

An order commits in one transaction (`services`); what follows from it travels as an event (`events`) to the
handlers in `consumers`.
"""
