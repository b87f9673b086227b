"""The gateway measured: beside mosquitto and stock amqtt (`python -m benchmarks`), and as it grows (`.growth`).

The generator is Python that sends prepared bytes. Nothing here is imported by the programs.
"""
