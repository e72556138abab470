"""Send a run to a machine that takes little at a time, and bring its weights back.

    python performance/transport.py pack SHIPMENT --data cifar10-lt --ratio 50 --test-max-count 200
    python performance/transport.py join SHIPMENT/data/cifar10-lt.npz       there, before training
    python performance/transport.py cut runs/x/model.safetensors            there, after training
    python performance/transport.py join runs/x/model.safetensors           here

`pack` copies the tracked files of this checkout without results/, and the images that the run needs
as uint8, in pieces below 30 MB; it refuses a shipment of more than 64 MiB. There the data set is
`--data npz:SHIPMENT/data/cifar10-lt.npz`. `cut` makes pieces below 16 MiB beside a file, and `join`
puts pieces together again, by the SHA-256 of the whole.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from taet.data import load
from taet.errors import UserError
from taet.settings import Data

ROOT = Path(__file__).parents[1]
LEFT_OUT = "results/"  # cards, which no run reads
MOST_BYTES = 64 * 2**20
DATA_PIECE, WEIGHTS_PIECE = 30 * 10**6, 16 * 2**20 - 1


def cut(path: Path, piece: int) -> list[Path]:
    """Write `path` in pieces of at most `piece` bytes beside it, with the SHA-256 of the whole."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    starts = range(0, len(content), piece)
    pieces = []
    for number, start in enumerate(starts):
        name = f"{path.name}.{number + 1}-of-{len(starts)}.{sha256}"
        pieces.append(path.with_name(name))
        pieces[-1].write_bytes(content[start : start + piece])
    return pieces


def join(path: Path) -> None:
    """Put the pieces of `path` that lie beside its place together; refuse any other content."""
    pieces = {}
    for piece in path.parent.glob(f"{path.name}.*-of-*.*"):
        place, sha256 = piece.name.removeprefix(f"{path.name}.").split(".")
        number, count = map(int, place.split("-of-"))
        pieces[number] = piece
    if not pieces:
        raise UserError(
            f"{path}: got no pieces of it; allowed: {path.name}.1-of-N.SHA256 and so on"
        )
    if missing := sorted({*range(1, count + 1)} - pieces.keys()):
        raise UserError(f"{path}: got {len(pieces)} of {count} pieces; missing: {missing[0]}")
    content = b"".join(pieces[number].read_bytes() for number in range(1, count + 1))
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path}: got pieces of other content than {sha256[:12]}")
    path.write_bytes(content)


def pack(folder: Path, data: Data) -> int:
    """Copy code and data into the new `folder`, and return the bytes of both."""
    folder.mkdir(parents=True)
    listed = subprocess.check_output(["git", "-C", str(ROOT), "ls-files", "-z"], text=True)
    for name in filter(None, listed.split("\0")):
        if not name.startswith(LEFT_OUT):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    dataset = load(data)
    arrays = {}
    for split_name, split in dataset.splits.items():
        key = "val" if split_name == "validation" else split_name
        arrays |= {f"{key}_images": np.asarray(split.images), f"{key}_labels": split.labels}
    whole = folder / "data" / f"{data.name}.npz"
    whole.parent.mkdir()
    np.savez_compressed(whole, **arrays)
    cut(whole, DATA_PIECE)
    whole.unlink()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise UserError(
            f"{folder}: got {size / 2**20:.1f} MiB; allowed: {MOST_BYTES / 2**20:.0f} MiB, e.g. "
            "with fewer test images (--test-max-count)"
        )
    return size


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="code and data to send")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--data", default="cifar10-lt", help="data set (cifar10-lt)")
    packing.add_argument("--ratio", type=float, default=50.0, help="imbalance ratio (50)")
    packing.add_argument("--test-max-count", type=int, help="most test images of a class (all)")
    for name, what in (("cut", "a file into pieces"), ("join", "pieces into a file")):
        commands.add_parser(name, help=what).add_argument("file", type=Path)
    given = parser.parse_args()
    try:
        if given.command == "pack":
            data = Data(
                name=given.data,
                imbalance_ratio=given.ratio,
                test_max_count=given.test_max_count,
            )
            print(f"{given.folder}: {pack(given.folder, data) / 2**20:.1f} MiB")
        elif given.command == "cut":
            for piece in cut(given.file, WEIGHTS_PIECE):
                print(piece)
        else:
            join(given.file)
            print(given.file)
    except (UserError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
