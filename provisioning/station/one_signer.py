"""One signer for many ports: a thread that has the CA open, and everybody else waits in its queue.

The CA's key is read once and used in one thread; SQLite's connection of the CA belongs to that thread too. A port that
waits longer than SIGN_LIMIT_S gets a fault, not a hang.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from cryptography import x509

from mtls.errors import Fault
from mtls.identity import DeviceId
from provisioning.ca import CertificateAuthority

SIGN_LIMIT_S = 60.0  # a signature and its commits take milliseconds; the lock on the CA at most ten seconds


class OneSigner:
    """A `Signer` whose `issue` may be called from any thread; use as a context manager."""

    def __init__(self, open_ca: Callable[[], CertificateAuthority]) -> None:
        """Open and unlock the CA in the signer's thread, so that a wrong passphrase shows at once."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="signer")
        try:
            self._ca = self._thread.submit(_opened, open_ca).result()
        except BaseException:
            self._thread.shutdown()
            raise
        self.folder = self._ca.folder
        self.root: x509.Certificate = self._ca.root
        self.issuing: x509.Certificate = self._ca.issuing

    def issue(self, device_id: DeviceId, *arguments: Any, **wishes: Any) -> list[x509.Certificate]:
        """What the CA's `issue` returns or raises, in turn."""
        signature = self._thread.submit(self._ca.issue, device_id, *arguments, **wishes)
        try:
            return signature.result(SIGN_LIMIT_S)
        except TimeoutError:
            signature.cancel()
            raise Fault(f"the CA did not sign within {SIGN_LIMIT_S:g} s", hint="look at its disk") from None

    def close(self) -> None:
        """Sign what is in the queue, then forget the key."""
        self._thread.submit(self._ca.close).result()
        self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(open_ca: Callable[[], CertificateAuthority]) -> CertificateAuthority:
    ca = open_ca()
    try:
        ca.unlock()
    except BaseException:
        ca.close()
        raise
    return ca
