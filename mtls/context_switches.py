"""Two switches of OpenSSL's server contexts that CPython does not have.

`remember_no_sessions`: the server-side cache of TLS 1.2 keeps every session that was closed in order, with the whole
chain that the client sent, by default 20,480 of them. Whoever has one certificate can fill it with chains of 60 kB.
Nothing of it is ever used by us: tickets are off, TLS 1.3 does not use it, and a resumed session would be judged again
anyway. So it is switched off (SSL_CTX_set_session_cache_mode(3)).

`search_no_chain`: a server whose file holds its own certificate alone has OpenSSL search and verify a chain for it in
every handshake, a tenth of what the handshake costs, and send it with the root, which no client needs. With the switch
the certificates of the file are sent as they are (SSL_MODE_NO_AUTO_CHAIN, SSL_CTX_set_mode(3)).

Both are one function of OpenSSL, called through ctypes on the SSL_CTX that stands first in CPython's context object.
That layout is private: the call is made only where it is known, and only if OpenSSL says by the same pointer that the
session cache is as we know it. Elsewhere nothing is touched: the cache stays on, `min_tls = "1.3"` closes the same
door, and handshakes are slower.
"""

from __future__ import annotations

import ctypes
import ssl
import sys
from typing import Final

SSL_CTRL_MODE: Final = 33  # these and the values below: openssl/ssl.h
SSL_CTRL_SET_SESS_CACHE_MODE: Final = 44
SSL_CTRL_GET_SESS_CACHE_MODE: Final = 45
SSL_MODE_NO_AUTO_CHAIN: Final = 8
SSL_SESS_CACHE_OFF: Final = 0
SSL_SESS_CACHE_SERVER: Final = 2  # the default
KNOWN_PYTHONS: Final = ((3, 11), (3, 12), (3, 13))


def remember_no_sessions(context: ssl.SSLContext) -> bool:
    """Switch the session cache of a context off; False where that cannot be done, and then nothing was changed."""
    return _switch(context, SSL_CTRL_SET_SESS_CACHE_MODE, SSL_SESS_CACHE_OFF)


def search_no_chain(context: ssl.SSLContext) -> bool:
    """Send the certificates of the context's file and no others; False where that cannot be done."""
    return _switch(context, SSL_CTRL_MODE, SSL_MODE_NO_AUTO_CHAIN)


def _switch(context: ssl.SSLContext, command: int, value: int) -> bool:
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in KNOWN_PYTHONS:
        return False
    control = _control()
    if control is None:
        return False
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    known = (SSL_SESS_CACHE_SERVER, SSL_SESS_CACHE_OFF)
    if not pointer or control(pointer, SSL_CTRL_GET_SESS_CACHE_MODE, 0, None) not in known:
        return False
    control(pointer, command, value, None)
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
