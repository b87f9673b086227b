"""Certificates made by our own commands, impostors made by openssl, and the servers that judge them."""

from collections.abc import Iterator

import pytest

from tests.integration.programs import Authority, Gateway, Identity, run


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA of ours with its server certificate and an empty CRL. Nobody revokes in it."""
    return Authority.make(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def device(authority: Authority) -> Identity:
    return authority.issue("press-07")


@pytest.fixture(scope="session")
def neighbour(authority: Authority) -> Identity:
    return authority.issue("press-08")


@pytest.fixture(scope="session")
def service(authority: Authority) -> Identity:
    return authority.issue("line-view", "--profile", "service", "--ou", "services")


@pytest.fixture(scope="session")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A certificate for press-07 that openssl signed with its own key, right in everything but its issuer."""
    folder = tmp_path_factory.mktemp("self-signed")
    found = Identity("press-07", folder / "press-07.crt", folder / "press-07.key")
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", "/CN=press-07", "-days", "2", "-addext", "extendedKeyUsage=clientAuth"),
        *("-keyout", found.key, "-out", found.cert),
    )
    return found


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A certificate for press-07 from another CA of the same make: only the key behind it is not ours."""
    return Authority.make(tmp_path_factory.mktemp("foreign")).issue("press-07")


@pytest.fixture(scope="module")
def gateway(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gw"), authority) as running:
        yield running
