"""Terrain tiles of a Freeciv tile set: the sheet and the list of its names, scaled to the cells of a map.

The list names each 30 x 30 square of the sheet after its terrain and after the neighbours that are of the same
terrain: `t.l0.swamp_n1e0s0w1` is drawn where the cells to the north and west are swamp too. Grassland is the ground
under all others and may have one tile for all neighbourhoods.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.data.verify import check
from shared.errors import UserError
from shared.paths import DATA

#: Kinds of terrain in the order of their costs, and what the tile set calls them.
KINDS = {"plains": "plains", "grass": "grassland", "forest": "forest", "swamp": "swamp", "mountain": "mountains"}
#: Pixels along one side of a map's cell.
CELL = 8
#: Bits of a tile's index, one for each neighbour of the same kind.
NORTH, EAST, SOUTH, WEST = 1, 2, 4, 8

_SECTION = re.compile(r"^\[grid_main\]\s*$(.*?)(?=^\[|\Z)", re.MULTILINE | re.DOTALL)
_POSITION_OR_TAG = re.compile(r'(\d+)\s*,\s*(\d+)\s*,|"([^"]*)"')


@dataclass(frozen=True)
class Sheet:
    """A sheet of tiles: `pixels` uint8 (H, W, 4), RGBA, and the upper left corner (row, column) of each named tile."""

    pixels: NDArray[np.uint8]
    corners: dict[str, tuple[int, int]]
    height: int
    width: int

    def tile(self, name: str) -> NDArray[np.float64]:
        """One tile: float64 (height, width, 4) in 0..255. A name that is not listed raises `KeyError`."""
        top, left = self.corners[name]
        return self.pixels[top : top + self.height, left : left + self.width].astype(np.float64)


def load_tiles(folder: Path = DATA, allow_sample: bool = False) -> NDArray[np.float32]:
    """The cells' pictures from the catalogued set `terrain_tiles`, after its checksums.

    Args:
        folder: what stands for `data/`.
        allow_sample: accept the tests' stand-in, whose tiles are cut from photographs.

    Returns:
        float32 (5, 16, 3, 8, 8) in 0..255: kind, set of like neighbours (sum of NORTH, EAST, SOUTH, WEST), RGB.

    Raises:
        UserError: the set is missing, damaged or an unwanted sample, or it does not have the tiles.
    """
    check("terrain_tiles", folder=folder, allow_sample=allow_sample)
    here = folder / "terrain_tiles"
    return cell_pictures(read_sheet(here / "tiles.png", here / "tiles.spec"))


def read_sheet(picture: Path, names: Path) -> Sheet:
    """The sheet and the names in the section `grid_main` of the list; of these a tile may have several.

    Raises:
        UserError: a file cannot be read or is no such list, or a name points outside the picture.
    """
    try:
        text = names.read_text(encoding="utf-8")
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGBA"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{picture.parent}: the tiles cannot be read ({error}); fetch them again") from None
    section = _SECTION.search(re.sub(r";.*", "", text))
    if section is None:
        raise UserError(f"{names} has no section [grid_main]: it is no list of tiles")
    x, y, width, height = (_number(key, section[1], names) for key in ("x_top_left", "y_top_left", "dx", "dy"))
    corners: dict[str, tuple[int, int]] = {}
    corner = None
    for row, column, tag in _POSITION_OR_TAG.findall(section[1]):
        if row:
            corner = (y + int(row) * height, x + int(column) * width)
        elif corner is not None:  # before the first position stand the names of the columns
            corners[tag] = corner
            if corner[0] + height > pixels.shape[0] or corner[1] + width > pixels.shape[1]:
                raise UserError(f"{names}: {tag} lies outside {picture.name}, which is {pixels.shape[:2]} pixels")
    return Sheet(pixels, corners, height, width)


def cell_pictures(sheet: Sheet) -> NDArray[np.float32]:
    """The tiles of the five kinds laid on grassland and averaged to 8 x 8: shape and errors as `load_tiles`."""
    try:
        ground = _colour(sheet.tile(_tag(sheet, "grassland", 15)))
        tiles = [[sheet.tile(_tag(sheet, name, flags)) for flags in range(16)] for name in KINDS.values()]
    except KeyError as missing:
        raise UserError(f"the list of terrain tiles has no {missing}: fetch it with `make data`") from None
    stacked = np.array(tiles)
    opacity = stacked[..., 3:] / 255
    laid = opacity * _colour(stacked) + (1 - opacity) * ground
    rows, columns = _area_weights(sheet.height, CELL), _area_weights(sheet.width, CELL)
    pictures: NDArray[np.float64] = np.einsum("ih,jw,kfhwc->kfcij", rows, columns, laid, optimize=True)
    return pictures.astype(np.float32)


def _colour(tile: NDArray[np.float64]) -> NDArray[np.float64]:
    return tile[..., :3]


def _tag(sheet: Sheet, terrain: str, flags: int) -> str:
    if terrain == "grassland" and "t.l0.grassland1" in sheet.corners:
        return "t.l0.grassland1"
    n, e, s, w = (int(bool(flags & side)) for side in (NORTH, EAST, SOUTH, WEST))
    return f"t.l0.{terrain}_n{n}e{e}s{s}w{w}"


def _number(key: str, section: str, path: Path) -> int:
    found = re.search(rf"^\s*{key}\s*=\s*(\d+)\s*$", section, re.MULTILINE)
    if found is None:
        raise UserError(f"{path}: the section [grid_main] gives no number {key}; fetch the file again")
    return int(found[1])


def _area_weights(source: int, target: int) -> NDArray[np.float64]:
    """(target, source): the share of each source pixel in each target pixel, by overlap; rows sum to 1."""
    size = source / target
    start = np.arange(target)[:, None] * size
    pixel = np.arange(source)[None]
    overlap = np.minimum(start + size, pixel + 1) - np.maximum(start, pixel)
    shares: NDArray[np.float64] = overlap.clip(min=0) / size
    return shares
