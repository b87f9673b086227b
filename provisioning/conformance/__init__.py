"""A device's SPP/1 held against the specification, check by check; `mqtt-provision spp1 conformance`."""
