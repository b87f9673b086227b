"""SPP/1, the serial provisioning protocol: frames, tables and the host's side, all without I/O (docs/spp1.md)."""
