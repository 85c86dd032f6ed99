"""Mutated files of every format through the decoder: an image or an ItemError, soon, and never anything else.

python -m tests.fuzz_decode --seconds 300
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from camcli.errors import ItemError
from camcli.images import libtiff
from camcli.images.decode import load_image
from camcli.images.preprocess import Preprocess
from tests.corpus import good_kinds, upright_kinds

SLOW_SECONDS = 10.0
PREPROCESS = Preprocess((64, 64), (64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", "center")


def mutated(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """`data` with some bytes changed, cut out, doubled, or replaced by a piece of `other`."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        start = (
            chance.randrange(len(changed) + 1) if chance.random() < 0.5 else chance.randrange(min(64, len(changed)) + 1)
        )
        length = chance.choice((1, 1, 2, 4, 32))
        kind = chance.randrange(6)
        if kind == 0:
            changed[start : start + length] = chance.randbytes(length)
        elif kind == 1:
            changed[start : start + length] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF))] * length)
        elif kind == 2:
            del changed[start : start + length]
        elif kind == 3:
            changed[start:start] = changed[start : start + length]
        elif kind == 4:
            from_other = chance.randrange(len(other))
            changed[start : start + length] = other[from_other : from_other + length]
        elif start < len(changed):
            changed[start] ^= 1 << chance.randrange(8)
    return bytes(changed)


def fate(path: Path) -> str:
    """`done`, the kind of the ItemError, or `SLOW`; any other exception is a finding and passes."""
    clock = time.monotonic()
    try:
        load_image(path, PREPROCESS)
        ended = "done"
    except ItemError as error:
        ended = error.kind
    return ended if time.monotonic() - clock < SLOW_SECONDS else "SLOW"


def fuzz(seconds: float, seed: int, place: Path) -> Counter[str]:
    """How many mutated files met which fate; a file that met a wrong one is left in `place`."""
    chance = random.Random(seed)
    seeds = [data for data, _ in {**good_kinds(), **upright_kinds()}.values() if len(data) < 20_000]
    fates: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = place / f"{seed}-{fates.total()}.bin"
        path.write_bytes(mutated(chance.choice(seeds), chance.choice(seeds), chance))
        fates[found := fate(path)] += 1
        if found != "SLOW":
            path.unlink()
    return fates


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("error", module=r"camcli\.")
    libtiff.silence()
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    fates = fuzz(args.seconds, args.seed, place)
    print(f"{fates.total()} files, {fates['SLOW']} of them slow, in {place}")
    for kind, count in fates.most_common():
        print(f"{count:9} {kind}")


if __name__ == "__main__":
    main()
