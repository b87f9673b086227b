"""Renewal of device certificates by the gateway itself: the part of EST (RFC 7030, RFC 8951) that renews.

`renewal.py` decides and knows no socket, `authority.py` holds the key that signs and the record of what it signed,
`server.py` speaks HTTP over TLS. New devices are the station's business: here nobody gets a certificate who has none.
"""
