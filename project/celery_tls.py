"""TLS of Celery's own connection to the broker: as strict as that of `messaging`."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any


class _OptionsOfEachHost(dict[str, Any]):
    """py-amqp's options, without the memory: kombu looks whether `server_hostname` is empty, and then writes the
    host's name there, for good. The next address of the list would be held to the first one's name."""

    def __getitem__(self, name: str) -> Any:
        return None if name == "server_hostname" else super().__getitem__(name)


def celery_tls(urls: Sequence[str], ca_file: str, cert_file: str, key_file: str) -> dict[str, Any] | bool:
    """Return `broker_use_ssl` for these addresses: certificate and host name are verified. False for plain ones.

    Celery's own default for amqps:// does not look whose certificate it is.
    """
    if not urls or not urls[0].lower().startswith("amqps:"):
        return False
    return _OptionsOfEachHost(
        cert_reqs=ssl.CERT_REQUIRED,
        server_hostname=None,
        ca_certs=ca_file or None,
        certfile=cert_file or None,
        keyfile=key_file or None,
    )
