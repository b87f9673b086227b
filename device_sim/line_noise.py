"""A serial line that loses, repeats, damages, breaks, delays and dirties what passes, from a seed.

Works on whole units (a frame out, a line in), so that the same seed gives the same damage however the operating
system cuts the bytes. Six of the rates are per unit; `noise` is per byte, as a bad cable is: what it hits is one of the
six kinds, drawn evenly. It decides what arrives and when; the waiting itself is done by who owns the clock.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

LONGEST_DELAY_S = 0.3  # under the host's 2 s: late, not lost
SPLIT_PAUSE_S = 0.05
BYTE_KINDS = ("drop", "duplicate", "flip", "split", "delay", "chatter")

# What firmware prints: an unfinished line, terminal colours, half a frame, bytes of the wrong baud rate.
CHATTER = (
    b"I (1402) wifi: new:<6,0>, old:<1,0>, ap:<255,255>",
    b"\x1b[0;33mW (2201) adc: value out of range\x1b[0m\n",
    b"\xff\xfe\x00\x80\xf0 x\n",
    b'!P1 {"s":"half',
    b"heap: 181232 free, largest 110580",
)
BOOT_CHATTER = (
    b"\x00\xf8\x00\xe0\x1c\x00\xff\xfe",
    b"\nets Jul 29 2019 12:21:46\r\n",
    b"rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n",
    b"I (31) boot: chip revision: 3\r\n",
    b"\x1b[0;32mI (42) boot: Loaded app from partition at offset 0x10000\x1b[0m\r\n",
    b"I (310) main: ready",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that arrive `after_s` seconds from now."""

    after_s: float
    data: bytes


class LineNoise:
    """One direction of a line; `rates` by the fault names of BYTE_KINDS, and `noise`."""

    def __init__(self, rates: Mapping[str, float], seed: str) -> None:
        self._rates = rates
        self._rng = random.Random(seed)  # noqa: S311 - reproducible on purpose

    def carry(self, unit: bytes) -> list[Piece]:
        """What arrives of one unit, in order."""
        if self._happens("drop"):
            return []
        data = self._flipped(unit) if self._happens("flip") else unit
        if self._happens("chatter"):
            data = self._rng.choice(CHATTER) + data
        after_s = self._rng.random() * LONGEST_DELAY_S if self._happens("delay") else 0.0
        pieces = [Piece(after_s, data)]
        if self._happens("split") and len(data) > 1:
            cut = 1 + int(self._rng.random() * (len(data) - 1))
            pieces = [Piece(after_s, data[:cut]), Piece(after_s + SPLIT_PAUSE_S, data[cut:])]
        pieces = pieces * 2 if self._happens("duplicate") else pieces
        if not self._rates.get("noise"):
            return pieces
        return [worn for piece in pieces for worn in self._byte_by_byte(piece)]

    def _byte_by_byte(self, piece: Piece) -> list[Piece]:
        """What arrives of a piece when every byte may be hit; later bytes never overtake earlier ones."""
        arrived = [(piece.after_s, bytearray())]
        for byte in piece.data:
            now_s, heard = arrived[-1]
            kind = self._rng.choice(BYTE_KINDS) if self._happens("noise") else ""
            if kind in ("split", "delay"):
                pause_s = SPLIT_PAUSE_S if kind == "split" else self._rng.random() * LONGEST_DELAY_S
                arrived.append((now_s + pause_s, bytearray([byte])))
            elif kind == "chatter":
                heard += self._rng.choice(CHATTER) + bytes([byte])
            elif kind == "flip":
                heard += self._flipped(bytes([byte]))
            elif kind != "drop":
                heard += bytes([byte]) * (2 if kind == "duplicate" else 1)
        return [Piece(after_s, bytes(data)) for after_s, data in arrived if data]

    def _happens(self, name: str) -> bool:
        rate = self._rates.get(name, 0.0)
        return rate > 0.0 and self._rng.random() < rate

    def _flipped(self, unit: bytes) -> bytes:
        damaged = bytearray(unit)
        damaged[int(self._rng.random() * len(unit))] ^= 1 << int(self._rng.random() * 8)
        return bytes(damaged)
