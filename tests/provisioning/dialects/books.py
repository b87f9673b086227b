"""What every dialect's burns leave in the ledger, whatever happened to them."""

from provisioning.ledger import CertificateState
from provisioning.records.verify import verify_ledger
from tests.provisioning.station_bench import Bench


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


def valid_certificates(bench: Bench, subject: str) -> int:
    """How many certificates of this name are signed and not revoked."""
    return len(bench.ca.ledger.certificates(subject=subject, state=CertificateState.ISSUED))


def assert_reconciled(bench: Bench) -> None:
    """Nothing is open, every attempt is counted once, and the ledger agrees with itself."""
    counts = bench.ca.ledger.counts()
    assert counts.started == counts.passed + counts.delivered + counts.failed + counts.quarantined
    assert bench.ca.ledger.unfinished() == []
    assert verify_ledger(bench.ca.ledger).problems == ()
