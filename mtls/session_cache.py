"""OpenSSL's server-side cache of TLS 1.2 sessions, and the switch for it that CPython does not have.

The cache keeps every session that was closed in order, with the whole chain that the client sent, by default 20,480 of
them. Whoever has one certificate can fill it with chains of 60 kB. Nothing of it is ever used by us: tickets are off,
TLS 1.3 does not use it, and a resumed session would be judged again anyway. So it is switched off.

The switch is `SSL_CTX_set_session_cache_mode` (OpenSSL, SSL_CTX_set_session_cache_mode(3)), called through ctypes on
the SSL_CTX that stands first in CPython's context object. That layout is private: the call is made only where it is
known, and only if OpenSSL gives the default mode back when it is asked first. Elsewhere the cache stays on, and
`min_tls = "1.3"` closes the same door.
"""

from __future__ import annotations

import ctypes
import ssl
import sys
from typing import Final

SSL_CTRL_SET_SESS_CACHE_MODE: Final = 44  # openssl/ssl.h
SSL_CTRL_GET_SESS_CACHE_MODE: Final = 45
SSL_SESS_CACHE_OFF: Final = 0
SSL_SESS_CACHE_SERVER: Final = 2  # the default
KNOWN_PYTHONS: Final = ((3, 11), (3, 12), (3, 13))


def remember_no_sessions(context: ssl.SSLContext) -> bool:
    """Switch the session cache of a context off; False where that cannot be done, and then nothing was changed."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in KNOWN_PYTHONS:
        return False
    control = _control()
    if control is None:
        return False
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    if not pointer or control(pointer, SSL_CTRL_GET_SESS_CACHE_MODE, 0, None) != SSL_SESS_CACHE_SERVER:
        return False
    control(pointer, SSL_CTRL_SET_SESS_CACHE_MODE, SSL_SESS_CACHE_OFF, None)
    return True


def _control() -> ctypes._NamedFuncPointer | None:
    """OpenSSL's SSL_CTX_ctrl, of the library that the ssl module itself uses."""
    import _ssl  # noqa: PLC0415 - private, and asked for its file only

    try:
        function = ctypes.CDLL(_ssl.__file__).SSL_CTX_ctrl
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
    function.restype = ctypes.c_long
    return function
