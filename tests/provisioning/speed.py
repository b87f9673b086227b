"""How fast the station is: units per second on virtual devices that take no time, and on ones that take theirs.

    python -m tests.provisioning.speed --units 200
    python -m tests.provisioning.speed --units 24 --keygen 2 --reset 3

Devices and operator share one process, the station is another. The ideal is the devices' own time and nothing else; it
is undefined where that is zero.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

from provisioning.ca import CertificateAuthority
from provisioning.spp1.protocol import Verb
from tests.provisioning.virtual_line import blank, sockets, station, work


def measure(folder: Path, units: int, ports: int, keygen_s: float, reset_s: float) -> dict[str, float]:
    """One run, from the first event to the last; start and end of the program are not counted."""
    CertificateAuthority.init(folder / "ca", "Speed", passphrase=None)
    (folder / "wo.toml").write_text(f'version = 1\norder = "S"\nquantity = {units}\nid = "u-{{serial}}"\n')
    delays = {Verb.KEYGEN: keygen_s, Verb.RESET: reset_s}
    times: list[float] = []
    with sockets(folder, ports, delays) as line:
        links = {name: socket.link for name, socket in line.items()}
        with station(folder / "ca", folder / "wo.toml", links, limit_s=600.0) as process:
            units_made = (blank(f"{number:06}") for number in itertools.count(1))
            verdicts = work(process, line, units_made, lambda event: times.append(time.monotonic()))
            process.wait(60)
    passed = sum(verdict["passed"] for verdict in verdicts)
    seconds = times[-1] - times[0]
    own_s = (keygen_s + reset_s) * units / ports
    report = {"passed": passed, "seconds": round(seconds, 2), "units_per_s": round(passed / seconds, 2)}
    return report | ({"over_ideal": round(seconds / own_s - 1, 3)} if own_s else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--ports", type=int, default=8)
    parser.add_argument("--keygen", type=float, default=0.0)
    parser.add_argument("--reset", type=float, default=0.0)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), told.units, told.ports, told.keygen, told.reset)))


if __name__ == "__main__":
    main()
