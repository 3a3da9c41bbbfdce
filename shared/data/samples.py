"""Small real samples in the data sets' own formats, so that tests and the `smoke` pipeline run without a network.

Where the licence allows it a sample is committed in `tests/data/<set>/` and copied; else it is cut here from the two
photographs that scikit-learn installs. Either way its checksums are catalogued (`manifests/<set>.sample.tsv`), and
loaders take it only when they are told to (`allow_sample=True`).
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images

from shared.data import manifest
from shared.data.catalogue import load
from shared.errors import UserError
from shared.files import write_bytes
from shared.paths import ROOT

COMMITTED = ROOT / "tests" / "data"

_SIDE = 32
_TRAIN_BATCH = 80
_TILE = 30
_SHEET_ROWS, _SHEET_COLUMNS = 23, 20
_TERRAINS = ("grassland", "hills", "forest", "mountains", "desert", "arctic", "jungle", "plains", "swamp", "tundra")


def write_samples(folder: Path) -> None:
    """Put every sample in place of the real sets: `<folder>/mnist/...` and so on. Existing files are replaced.

    Raises:
        UserError: a sample is not as catalogued, such as when another version of an image library cuts other pixels.
    """
    for name, data_set in load().items():
        if data_set.sample == "none":
            continue
        source = COMMITTED / name
        cut = _CUTS[name]() if data_set.sample == "cut" else {}
        for entry in data_set.sample_files:
            content = cut[entry.path] if data_set.sample == "cut" else (source / entry.path).read_bytes()
            if manifest.describe(content, entry.path) != entry:
                raise UserError(f"the sample of {name} is not as catalogued: {entry.path} has another SHA-256")
            write_bytes(folder / name / entry.path, content)


def photographs() -> list[np.ndarray]:
    """The two photographs of scikit-learn, a temple and a flower: uint8 (427, 640, 3) each."""
    return [np.asarray(image, dtype=np.uint8) for image in load_sample_images().images]


def cut_cifar10() -> dict[str, bytes]:
    """CIFAR-10's six binary files from 520 patches of the photographs, 80 a training batch and 120 for testing.

    The label is the patch's rank by brightness in ten equal classes: something a network can learn.
    """
    patches = np.concatenate([_patches(photograph) for photograph in photographs()])
    order = np.arange(len(patches)) * 157 % len(patches)  # 157 and 520 share no factor: every patch once, well mixed
    brightness = patches.reshape(len(patches), -1).sum(axis=1, dtype=np.int64)
    labels = (brightness.argsort(kind="stable").argsort(kind="stable") * 10 // len(patches)).astype(np.uint8)
    records = np.concatenate([labels[:, None], patches.transpose(0, 3, 1, 2).reshape(len(patches), -1)], axis=1)[order]
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    files = {name: records[i * _TRAIN_BATCH : (i + 1) * _TRAIN_BATCH].tobytes() for i, name in enumerate(names)}
    return files | {"test_batch.bin": records[5 * _TRAIN_BATCH :].tobytes()}


def _patches(photograph: np.ndarray) -> np.ndarray:
    """All whole 32 x 32 squares of a photograph: uint8 (n, 32, 32, 3)."""
    rows, columns = photograph.shape[0] // _SIDE, photograph.shape[1] // _SIDE
    grid = photograph[: rows * _SIDE, : columns * _SIDE].reshape(rows, _SIDE, columns, _SIDE, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, _SIDE, _SIDE, 3)


def cut_terrain_tiles() -> dict[str, bytes]:
    """A sheet of 23 x 20 tiles, 30 x 30 RGBA, from the photographs, and a list of names in the form of the real one.

    Each terrain has sixteen tiles, one for each set of like neighbours (`n1e0s0w1`: north and west).
    """
    both = np.concatenate(photographs())[: _SHEET_ROWS * _TILE, : _SHEET_COLUMNS * _TILE]
    sheet = np.concatenate([both, np.full((*both.shape[:2], 1), 255, dtype=np.uint8)], axis=2)
    lines = ["[file]", 'gfx = "trident/tiles"', "", "[grid_main]", "x_top_left = 0", "y_top_left = 0"]
    lines += [f"dx = {_TILE}", f"dy = {_TILE}", "", 'tiles = { "row", "column", "tag"']
    for row, terrain in enumerate(_TERRAINS):
        for column in range(16):
            n, e, s, w = (column >> bit & 1 for bit in range(4))
            lines.append(f'{row:3}, {column:2}, "t.l0.{terrain}_n{n}e{e}s{s}w{w}"')
    return {"tiles.png": _plain_png(sheet), "tiles.spec": ("\n".join([*lines, "}"]) + "\n").encode()}


def _plain_png(pixels: np.ndarray) -> bytes:
    """An RGBA picture as PNG without compression, so that its bytes do not depend on the version of a packer."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), pixels.reshape(height, -1)], axis=1).tobytes()
    blocks = [rows[start : start + 65535] for start in range(0, len(rows), 65535)]
    stored = [struct.pack("<BHH", i == len(blocks) - 1, len(b), 65535 - len(b)) + b for i, b in enumerate(blocks)]
    body = b"\x78\x01" + b"".join(stored) + struct.pack(">I", zlib.adler32(rows))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


_CUTS: dict[str, Callable[[], dict[str, bytes]]] = {"cifar10": cut_cifar10, "terrain_tiles": cut_terrain_tiles}
