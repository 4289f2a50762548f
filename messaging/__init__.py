"""Events that a Django project committed reach every consumer, once in effect, and stay visible.

The journey, one station a file: `events` (what happened), `outbox` (written with the transaction), `relay`
(published), `broker` and `topology` (routed), `worker` and `inbox` (handled once), `retry` (again, or dead).
Import from the stations: `messaging.events.Event`, `messaging.outbox.add`, `messaging.consumers.consumer`,
`messaging.rpc`.
"""
