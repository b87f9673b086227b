"""A CA's key in an HSM: named by a `pkcs11:` URI, used through PKCS#11, never here.

`HsmKey` is a key object like any other to whoever builds a certificate or a CRL; it can sign, and every other use is
refused. The URI names the token, the key's label and the module; the PIN comes from a file or a prompt, never from the
URI, an argument or the environment. A PIN that makers hand out with their tokens is refused.

Needs python-pkcs11, the extra `hsm`. Not verified: what the token claims of itself, extractability included.
Spec: RFC 7512 (URI), PKCS#11 v2.40 section 2.3.6 (ECDSA), RFC 5480 (the curve).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from mtls.errors import ConfigFault, Fault
from mtls.keystore import read_private

if TYPE_CHECKING:
    from pkcs11 import Session

SCHEME = "pkcs11:"
COORDINATE_BYTES = 32
P256_OID = bytes.fromhex("06082a8648ce3d030107")  # DER of 1.2.840.10045.3.1.7, PKCS#11's EC_PARAMS
MAX_PIN_BYTES = 64
# What SoftHSM's, YubiKey's, Nitrokey's and SmartCard-HSM's own pages hand out.
DEFAULT_PINS = frozenset({b"1234", b"0000", b"12345", b"123456", b"12345678", b"0001password", b"648219", b"password"})
EXAMPLE = "pkcs11:token=station-1;object=issuing?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/root/pin"


@dataclass(frozen=True, slots=True)
class KeyUri:
    """Which key in which token behind which module; `pin_file` None: the PIN is asked for. `text` is the URI itself."""

    token: str
    object: str
    module: Path
    pin_file: Path | None = None
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> KeyUri:
        """ConfigFault for anything but what this program needs, and for a PIN in the open."""
        path, _, query = text.removeprefix(SCHEME).partition("?")
        named = dict(_pairs(path, ";")) | dict(_pairs(query, "&"))
        if "pin-value" in named:
            raise ConfigFault(
                "a pkcs11: URI with pin-value shows the PIN to everybody", hint="use pin-source=file:/path (0600)"
            )
        unknown = named.keys() - {"token", "object", "module-path", "pin-source"}
        missing = {"token", "object", "module-path"} - named.keys()
        if not text.startswith(SCHEME) or unknown or missing:
            what = f"does not know {sorted(unknown)[0]!a}" if unknown else f"needs {', '.join(sorted(missing))}"
            raise ConfigFault(f"the key's URI {what if text.startswith(SCHEME) else 'is no pkcs11: URI'}", hint=EXAMPLE)
        source = named.get("pin-source")
        if source is not None and not source.startswith(("file:", "/")):
            raise ConfigFault("pin-source is not a file", hint=EXAMPLE)
        pin_file = Path(source.removeprefix("file:")) if source is not None else None
        return cls(named["token"], named["object"], Path(named["module-path"]), pin_file, text)

    def pin(self, ask: Callable[[], bytes]) -> bytes:
        """The PIN from its file, or what `ask` gives; ConfigFault for one that came with the token."""
        pin = read_private(self.pin_file).strip() if self.pin_file is not None else ask()
        if not 0 < len(pin) <= MAX_PIN_BYTES:
            raise ConfigFault(f"the PIN of token {self.token!a} is empty or longer than {MAX_PIN_BYTES} bytes")
        if pin in DEFAULT_PINS:
            raise ConfigFault(
                f"the PIN of token {self.token!a} is one that tokens are sold with",
                hint="change it, for example with: pkcs11-tool --change-pin",
            )
        return pin


def _pairs(text: str, separator: str) -> Iterator[tuple[str, str]]:
    for part in text.split(separator):
        name, equals, value = part.partition("=")
        if equals:
            yield name, unquote(value)


class HsmKey(ec.EllipticCurvePrivateKey):
    """A P-256 key that signs inside a token. It cannot be read, and says so.

    `sign` gives r and s for a SHA-256 digest; `close` ends the session with the token.
    """

    def __init__(
        self,
        public_key: ec.EllipticCurvePublicKey,
        sign: Callable[[bytes], bytes],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._public_key = public_key
        self._sign = sign
        self.close = close

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return ec.SECP256R1()

    @property
    def key_size(self) -> int:
        """Bits."""
        return self.curve.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._public_key

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """ECDSA with SHA-256 as DER; no other algorithm."""
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, Prehashed) or not isinstance(algorithm, hashes.SHA256):
            raise Fault("a key in an HSM signs with ECDSA and SHA-256 only")
        raw = self._sign(hashlib.sha256(bytes(data)).digest())
        if len(raw) != 2 * COORDINATE_BYTES:
            raise Fault(f"the HSM gave a signature of {len(raw)} bytes")
        return encode_dss_signature(
            int.from_bytes(raw[:COORDINATE_BYTES], "big"), int.from_bytes(raw[COORDINATE_BYTES:], "big")
        )

    def exchange(self, algorithm: object, peer_public_key: object) -> NoReturn:
        """Refused."""
        self._refuse()

    def private_numbers(self) -> NoReturn:
        """Refused."""
        self._refuse()

    def private_bytes(self, encoding: object, format: object, encryption_algorithm: object) -> NoReturn:
        """Refused."""
        self._refuse()

    def __copy__(self) -> HsmKey:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> HsmKey:
        return self

    @staticmethod
    def _refuse() -> NoReturn:
        raise Fault("a key in an HSM signs and does nothing else")


def load_hsm_key(uri: KeyUri, ask_pin: Callable[[], bytes]) -> HsmKey:
    """Open the key that `uri` names; ConfigFault when module, token, PIN or key are not what it says."""
    with _session(uri, ask_pin) as session:
        return _hsm_key(session, _one(session, uri, "PRIVATE_KEY"), _one(session, uri, "PUBLIC_KEY"))


def make_hsm_key(uri: KeyUri, ask_pin: Callable[[], bytes]) -> HsmKey:
    """Make a new key under the label; one that is there is never used again and never replaced."""
    with _session(uri, ask_pin) as session:
        from pkcs11 import Attribute, KeyType  # noqa: PLC0415 - an extra

        if list(session.get_objects({Attribute.LABEL: uri.object})):
            raise ConfigFault(
                f"token {uri.token!a} holds an object {uri.object!a} already", hint="name a new one in the URI"
            )
        curve = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: P256_OID}, local=True)
        public, private = curve.generate_keypair(
            store=True,
            label=uri.object,
            private_template={Attribute.EXTRACTABLE: False, Attribute.SENSITIVE: True},
        )
        return _hsm_key(session, private, public)


def _hsm_key(session: Session, private: Any, public: Any) -> HsmKey:
    from pkcs11 import Attribute, Mechanism  # noqa: PLC0415

    if bytes(public[Attribute.EC_PARAMS]) != P256_OID:
        raise ConfigFault("the key in the HSM is not on the curve P-256", hint="keys are P-256 everywhere")
    point = bytes(public[Attribute.EC_POINT])
    encoded = point[2:] if len(point) == 67 else point  # PKCS#11 wraps it in an OCTET STRING; some tokens do not
    return HsmKey(
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), encoded),
        lambda digest: bytes(private.sign(digest, mechanism=Mechanism.ECDSA)),
        session.close,
    )


def _one(session: Session, uri: KeyUri, kind: str) -> Any:
    from pkcs11 import Attribute, ObjectClass  # noqa: PLC0415

    found = list(session.get_objects({Attribute.LABEL: uri.object, Attribute.CLASS: ObjectClass[kind]}))
    if len(found) != 1:
        raise ConfigFault(
            f"token {uri.token!a} holds {len(found)} objects {uri.object!a} of class {kind.lower()}",
            hint="list them with: pkcs11-tool --module MODULE --list-objects",
        )
    return found[0]


@contextmanager
def _session(uri: KeyUri, ask_pin: Callable[[], bytes]) -> Iterator[Session]:
    """A session with the token, closed when the block fails; else it lives as long as the key."""
    with _faults(uri):
        import pkcs11  # noqa: PLC0415

        token = pkcs11.lib(str(uri.module)).get_token(token_label=uri.token)
        pin = uri.pin(ask_pin).decode()
        try:
            session = token.open(rw=True, user_pin=pin)
        except pkcs11.UserAlreadyLoggedIn:  # a login is the process's: another key of ours in this token made it
            session = token.open(rw=True)
        try:
            yield session
        except BaseException:
            session.close()
            raise


@contextmanager
def _faults(uri: KeyUri) -> Iterator[None]:
    """PKCS#11's errors as ours; the words of the token are not repeated."""
    try:
        import pkcs11  # noqa: PLC0415
    except ImportError:
        raise ConfigFault("keys in an HSM need python-pkcs11", hint="pip install 'mqtt-mtls-gateway[hsm]'") from None
    causes: tuple[tuple[type[Exception], str, str], ...] = (
        (pkcs11.NoSuchToken, f"there is no token {uri.token!a}", "is it plugged in? pkcs11-tool --list-slots"),
        (pkcs11.PinIncorrect, f"the PIN of token {uri.token!a} is wrong", "a token locks itself after a few tries"),
        (pkcs11.PinLocked, f"token {uri.token!a} has locked itself", "its security officer's PIN unlocks it"),
        (pkcs11.PinLenRange, f"the PIN of token {uri.token!a} is too short or too long", ""),
    )
    try:
        yield
    except (pkcs11.PKCS11Error, RuntimeError, ValueError) as error:
        for kind, sentence, hint in causes:
            if isinstance(error, kind):
                raise ConfigFault(sentence, hint=hint) from None
        raise ConfigFault(
            f"the HSM behind {uri.module} does not work: {type(error).__name__}",
            hint="try it with: pkcs11-tool --module MODULE --list-slots",
        ) from None
