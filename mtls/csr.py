"""What a certificate signing request is good for: a public key and the proof that its private half exists.

The signature is checked here because loading a CSR does not (a tampered one parses without complaint). Subject,
extensions and attributes are the requester's wishes: they name nobody. The station does not look at them, since names
come from the work order; a renewal compares them with the certificate that is renewed (`names_of`). Refused: anything
but P-256, anything but ECDSA with SHA-256 or longer, more than 16 KiB. PKCS#10 is RFC 2986.
"""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import SignatureAlgorithmOID

from mtls.errors import Fault
from mtls.identity import UNREADABLE

MAX_CSR_BYTES = 16 * 1024  # a P-256 request with generous extensions stays under 2 KiB
SIGNATURES = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    }
)


class CsrFault(Fault):
    """A CSR that proves nothing, or proves it with a key we do not certify."""


def csr_public_key(data: bytes, source: str) -> ec.EllipticCurvePublicKey:
    """The P-256 key whose holder signed this CSR (PEM or DER); `source` names it in the fault's sentence."""
    return verified_csr(data, source)[1]


def verified_csr(data: bytes, source: str) -> tuple[x509.CertificateSigningRequest, ec.EllipticCurvePublicKey]:
    """The CSR as well, for who has to compare its wishes with something."""
    csr = _load(data, source)
    if csr.signature_algorithm_oid not in SIGNATURES:
        raise CsrFault(
            f"{source} is signed with {csr.signature_algorithm_oid.dotted_string}, not with ECDSA and SHA-256",
            hint="make the request with a P-256 key and SHA-256",
        )
    key = _key_of(csr, source)
    if not _is_signed_by_its_key(csr):
        raise CsrFault(
            f"the signature of {source} does not match its public key",
            hint="make the request again on the device; this one was changed or damaged on its way",
        )
    return csr, key


def _load(data: bytes, source: str) -> x509.CertificateSigningRequest:
    if len(data) > MAX_CSR_BYTES:
        raise CsrFault(f"{source} is larger than {MAX_CSR_BYTES} bytes, which no request needs")
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_csr(data)
        return x509.load_der_x509_csr(data)
    except UNREADABLE:
        raise CsrFault(
            f"{source} is not a certificate signing request",
            hint="expected PKCS#10 in PEM or DER: openssl req -new -key device.key -out device.csr",
        ) from None


def _key_of(csr: x509.CertificateSigningRequest, source: str) -> ec.EllipticCurvePublicKey:
    try:
        key = csr.public_key()
    except UNREADABLE:
        raise CsrFault(f"the public key in {source} cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CsrFault(
            f"the public key in {source} is not on the curve P-256",
            hint="make the key with: openssl ecparam -name prime256v1 -genkey -noout -out device.key",
        )
    return key


def _is_signed_by_its_key(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return csr.is_signature_valid
    except UNREADABLE:
        return False


Names = tuple[x509.Name, frozenset[x509.GeneralName]]


def names_of(named: x509.CertificateSigningRequest | x509.Certificate) -> Names | None:
    """Subject and subjectAltName, to be compared; None for what cannot be parsed."""
    try:
        alternative = named.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return named.subject, frozenset(alternative)
    except x509.ExtensionNotFound:
        return named.subject, frozenset()
    except UNREADABLE:
        return None
