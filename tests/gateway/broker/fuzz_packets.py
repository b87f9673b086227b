"""A coverage-guided fuzzer over the codec, run by hand; it judges with the rule of the property tests.

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris -e '.[test]'
    /tmp/fuzz/bin/python -m tests.gateway.broker.fuzz_packets -max_total_time=300 NEW_CORPUS tests/gateway/broker/corpus

What it finds worth keeping goes into `corpus/` (`*.bin`, few and small), which the property tests replay.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["gateway.broker"]):
    from tests.gateway.broker.test_packets_properties import judge


def main() -> None:
    """Fuzz until a limit of libFuzzer's command line is reached."""
    atheris.Setup(sys.argv, judge)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
