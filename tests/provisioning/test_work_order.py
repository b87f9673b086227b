"""Files of TOML from somebody else: a work order comes by mail, and is read by who has the CA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewayConfig
from mtls.errors import ConfigFault
from provisioning.ca_settings import CaSettings
from provisioning.station.order import read_work_order

GOOD = 'version = 1\norder = "WO-1"\nquantity = 1\nrequired_firmware = ["1.4 beta"]\n'


def test_texts_that_would_steer_a_terminal_are_no_firmware(tmp_path: Path) -> None:
    """A unit with other firmware is refused in a sentence that names what the order wants."""
    file = tmp_path / "order.toml"
    file.write_text(GOOD)
    assert read_work_order(file).required_firmware == ("1.4 beta",)
    file.write_text(GOOD.replace("1.4 beta", r"\u001b]0;PASS\u0007"))
    with pytest.raises(ConfigFault, match="required_firmware") as refused:
        read_work_order(file)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("name", "read"),
    [("order.toml", read_work_order), ("gateway.toml", GatewayConfig.load), ("ca.toml", CaSettings.load)],
)
def test_brackets_without_end_are_a_fault_with_the_file_s_name(
    tmp_path: Path, name: str, read: Callable[[Path], Any]
) -> None:
    """The parser recurses; it must not end the program with a traceback."""
    file = tmp_path / name
    file.write_text("a = " + "[" * 30_000)
    with pytest.raises(ConfigFault, match=name):
        read(file)
