"""Certificates of the tests' own making: a CA, what it issues, and strangers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from script.services.rabbitmq_directory import TlsFiles


class Certificates:
    """A CA in `directory`, a broker's certificate that can be exchanged, a client's, and an unrelated CA."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.ca = directory / "ca.pem"
        self.other_ca = directory / "other-ca.pem"
        self.client = directory / "client.pem"
        self.broker = TlsFiles(
            ca=self.ca,
            certificate=directory / "broker.pem",
            key=directory / "broker-key.pem",
            wants_client_certificate=True,
        )
        self._ca.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(self.other_ca)
        self._ca.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(self.client)
        self.issue("localhost", "127.0.0.1")

    def issue(self, *names: str, expired: bool = False) -> None:
        """Give the broker another certificate, in the same files."""
        self.issued_for = (names, expired)
        now = datetime.now(UTC)
        begin, end = (now - timedelta(days=2), now - timedelta(days=1)) if expired else (None, now + timedelta(days=1))
        made = self._ca.issue_cert(*names, not_before=begin, not_after=end)
        made.private_key_pem.write_to_path(self.broker.key)
        self.broker.certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))

    @property
    def settings(self) -> dict[str, str]:
        """What `settings.MESSAGING` needs to trust the broker, and be trusted."""
        return {"TLS_CA_FILE": str(self.ca), "TLS_CERT_FILE": str(self.client)}
