"""The custody of CA keys: the root offline, an issuing CA per station, rotation, and publishing of CRLs."""
