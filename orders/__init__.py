"""The shop: catalogue, cart, orders, red packets and text messages.

An order commits in one transaction (`services`). Its effects follow from events (`events`), which the handlers in
`consumers` receive.
"""
