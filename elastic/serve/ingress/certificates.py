"""Checks certificates before a server starts with them, so that a wrong one is an error message and not a dead port."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from elastic.errors import ConfigError


def check_pair(cert: Path, key: Path, now: datetime | None = None) -> None:
    """Whether a server can show the certificate: the key is its key, and it is valid now.

    Raises:
        ConfigError: it is not; the rule says why.
    """
    _check_dates("tls_cert", cert, _certificates("tls_cert", cert)[0], now)
    _read("tls_key", key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError("serve.tls_key", str(key), f"is not the key of the certificate in {cert}") from error
        raise ConfigError("serve.tls_key", str(key), f"is not a PEM private key ({error.reason})") from error


def check_authorities(path: Path, now: datetime | None = None) -> None:
    """Whether clients can be checked against the certificates in a file: all are valid now.

    Raises:
        ConfigError: they cannot; the rule says why.
    """
    for certificate in _certificates("client_ca", path):
        _check_dates("client_ca", path, certificate, now)


def _certificates(field: str, path: Path) -> list[x509.Certificate]:
    content = _read(field, path)
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise ConfigError(f"serve.{field}", str(path), "holds no PEM certificate") from error


def _read(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"serve.{field}", str(path), f"cannot be read ({error.strerror})") from error


def _check_dates(field: str, path: Path, certificate: x509.Certificate, now: datetime | None) -> None:
    now = now or datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise ConfigError(f"serve.{field}", str(path), f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M}")
    if now < certificate.not_valid_before_utc:
        begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
        raise ConfigError(f"serve.{field}", str(path), f"is valid only from {begins} UTC; is the clock right?")


def _refuse_password() -> str:
    # Else OpenSSL asks at the terminal.
    raise ConfigError("serve.tls_key", "...", "is encrypted; decrypt it first: openssl pkey -in KEY -out PLAIN")
