"""TLS to the broker: the CAs that this process trusts, and its own certificate.

The broker's certificate and its host name are always verified; no setting turns that off.
"""

from __future__ import annotations

import ssl


def context(ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """Return a context that trusts only the CAs in `ca_file`; without it, those of this machine.

    `cert_file` is the client certificate, with its key in `key_file` or in the same file. Raises ValueError, naming the
    setting, for a file that cannot be used.
    """
    try:
        made = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ValueError(f"TLS_CA_FILE: {ca_file} holds no certificate that can be read: {_why(error)}") from None
    if key_file and not cert_file:
        raise ValueError("TLS_KEY_FILE is set, but not TLS_CERT_FILE: the key belongs to a certificate")
    if cert_file:
        try:
            # Without this password OpenSSL would ask for one on the terminal, and wait.
            made.load_cert_chain(cert_file, key_file or None, password=lambda: b"")
        except OSError as error:
            files = f"{cert_file} and {key_file}" if key_file else cert_file
            raise ValueError(
                f"TLS_CERT_FILE, TLS_KEY_FILE: {files}: no certificate with its key, not encrypted: {_why(error)}"
            ) from None
    return made


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)
