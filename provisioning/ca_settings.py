"""`ca.toml` in a CA's folder: what the owner of the root allowed this CA, and where its CRL is published.

Strict TOML, like every file of ours. A CA without the file has no quota and names no URL. The quota keeps a station
from running wild; it does not bind a thief of the key, against whom only revoking the CA helps.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from mtls.errors import ConfigFault
from mtls.keystore import read_limited

MAX_QUOTA = 2**31 - 1


@dataclass(frozen=True, slots=True)
class CaSettings:
    """`quota`: certificates that the issuing CA may sign. `crl_url`: the distribution point in its leaves."""

    quota: int | None = None
    crl_url: str | None = None

    @classmethod
    def load(cls, path: Path) -> "CaSettings":
        """The settings in a file, or none when it is not there; ConfigFault names file, key and value."""
        if not path.exists():
            return cls()
        try:
            found = tomllib.loads(read_limited(path).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigFault(f"{path}: {error}", hint="the file is TOML: quota = 100000") from None
        for key in found.keys() - {"quota", "crl_url"}:
            raise ConfigFault(f"{path}: unknown key {key!a}", hint="known are quota and crl_url")
        return cls(quota=_quota(path, found.get("quota")), crl_url=_url(path, found.get("crl_url")))

    @classmethod
    def checked(cls, quota: int | None, crl_url: str | None) -> "CaSettings":
        """Settings as an operator types them; ConfigFault for a URL that cannot stand in a certificate."""
        return cls(quota=quota, crl_url=_url(Path("--crl-url"), crl_url))

    def crl_url_of(self, issuing: x509.Certificate) -> str | None:
        """The URL that the leaves of an issuing CA name; `{issuer}` stands for its key id, `crl serve`'s file name."""
        return None if self.crl_url is None else self.crl_url.replace("{issuer}", key_id(issuing))

    def to_toml(self) -> str:
        """The file's content."""
        quota = "" if self.quota is None else f"quota = {self.quota}\n"
        return quota + ("" if self.crl_url is None else f'crl_url = "{self.crl_url}"\n')


def key_id(ca: x509.Certificate) -> str:
    """A CA's subject key identifier as lower-case hex."""
    return ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def _quota(path: Path, value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_QUOTA:
        raise ConfigFault(f"{path}: quota = {value!a} is not a number from 1 to {MAX_QUOTA}", hint="quota = 100000")
    return value


def _url(path: Path, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not is_crl_url(value):
        raise ConfigFault(
            f"{path}: crl_url = {value!a} is not an http:// URL",
            hint='crl_url = "http://ca.example.com/crl/{issuer}.crl"',
        )
    return value


def is_crl_url(text: str) -> bool:
    """Whether a text may stand in a certificate as a CRL's URL: short, printable, without quotes, http(s)."""
    plain = text.isascii() and text.isprintable() and not set(text) & set(' "\\<>')
    return plain and len(text) <= 256 and text.startswith(("http://", "https://"))
