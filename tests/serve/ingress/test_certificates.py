"""Certificates that cannot be used are named before a server starts."""

import datetime
import subprocess
from pathlib import Path

import pytest

from elastic.errors import ConfigError
from elastic.serve.ingress.certificates import check_authorities, check_pair
from tests.certificates import Authority

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
YEAR = datetime.timedelta(days=365)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_certificate_its_key_and_its_authority_are_good(authority: Authority) -> None:
    check_pair(*authority.issue("server"), NOW)
    check_authorities(authority.ca, NOW)


def test_the_key_of_another_certificate_is_named(authority: Authority) -> None:
    cert, _ = authority.issue("server")
    _, key = authority.issue("other")
    with pytest.raises(ConfigError, match=r"serve.tls_key.*is not the key of the certificate in .*server\.pem"):
        check_pair(cert, key, NOW)


def test_an_expired_certificate_is_named_with_its_last_day(authority: Authority) -> None:
    cert, key = authority.issue("server", NOW - 2 * YEAR, NOW - YEAR)
    with pytest.raises(ConfigError, match=r"serve.tls_cert.*expired on 2025-06-01"):
        check_pair(cert, key, NOW)


def test_a_certificate_of_the_future_asks_for_the_clock(authority: Authority) -> None:
    cert, key = authority.issue("server", NOW + YEAR, NOW + 2 * YEAR)
    with pytest.raises(ConfigError, match=r"only from 2027-06-01.*clock"):
        check_pair(cert, key, NOW)


def test_an_expired_authority_is_named(authority: Authority) -> None:
    with pytest.raises(ConfigError, match=r"serve.client_ca.*expired on 2120"):
        check_authorities(authority.ca, datetime.datetime(2121, 1, 1, tzinfo=datetime.UTC))


def test_a_missing_file_is_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    with pytest.raises(ConfigError, match=r"serve.tls_cert.*none\.pem.*No such file"):
        check_pair(tmp_path / "none.pem", key, NOW)
    with pytest.raises(ConfigError, match=r"serve.tls_key.*none\.key.*No such file"):
        check_pair(cert, tmp_path / "none.key", NOW)


def test_a_file_of_another_kind_is_named(authority: Authority) -> None:
    cert, key = authority.issue("server")
    with pytest.raises(ConfigError, match=r"serve.tls_cert.*holds no PEM certificate"):
        check_pair(key, key, NOW)
    with pytest.raises(ConfigError, match=r"serve.tls_key.*is not a PEM private key"):
        check_pair(cert, cert, NOW)


def test_an_encrypted_key_is_refused_without_asking_for_its_password(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("server")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigError, match="is encrypted"):
        check_pair(cert, locked, NOW)
