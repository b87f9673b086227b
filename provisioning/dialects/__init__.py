"""Other ways to hand a certificate to a unit than SPP/1: each module is one format, without a port in it."""
