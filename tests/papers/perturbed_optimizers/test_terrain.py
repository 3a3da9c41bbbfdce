"""The maps: tiles by their neighbours, labels by another solver, randomness by seed and split, metrics by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from papers.perturbed_optimizers import terrain
from papers.perturbed_optimizers.terrain import Maps, cost_metrics, draw_maps, path_metrics
from papers.perturbed_optimizers.terrain_tiles import (
    EAST,
    KINDS,
    NORTH,
    SOUTH,
    WEST,
    cell_pictures,
    load_tiles,
    read_sheet,
)
from shared.data.samples import cut_terrain_tiles
from shared.errors import UserError
from shared.paths import DATA

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in tiles in place of `data/`."""
    place = tmp_path_factory.mktemp("data")
    (place / "terrain_tiles").mkdir()
    for name, content in cut_terrain_tiles().items():
        (place / "terrain_tiles" / name).write_bytes(content)
    return place


@pytest.fixture(scope="module")
def maps(folder: Path) -> Maps:
    return draw_maps(300, 3, "train", folder, allow_sample=True)


def optimum(costs: np.ndarray) -> float:
    """Dijkstra of scipy on the graph of cells, an edge costing what its head costs."""
    height, width = costs.shape
    edges = [
        (i * width + j, (i + a) * width + j + b, costs[i + a, j + b])
        for i in range(height)
        for j in range(width)
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
        if (a or b) and 0 <= i + a < height and 0 <= j + b < width
    ]
    tails, heads, weights = zip(*edges)
    graph = coo_array((weights, (tails, heads)), shape=(costs.size, costs.size)).tocsr()
    return float(dijkstra(graph, indices=0)[-1] + costs[0, 0])


def leads(path: np.ndarray) -> bool:
    """Whether the cells of a path are a chain from corner to corner, found by walking over them."""
    cells = {(int(i), int(j)) for i, j in np.argwhere(path == 1)}
    ends, reached = [(0, 0)], {(0, 0)} & cells
    while ends:
        i, j = ends.pop()
        near = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & cells - reached
        reached |= near
        ends += near
    return reached == cells and (path.shape[0] - 1, path.shape[1] - 1) in reached


def test_shapes_types_and_ranges(maps: Maps) -> None:
    assert maps.pixels.shape == (300, 3, 96, 96)
    assert maps.pixels.dtype == torch.uint8
    assert maps.kinds.shape == maps.costs.shape == maps.paths.shape == (300, 12, 12)
    assert maps.optimal_cost.shape == (300,)
    assert {each.dtype for each in (maps.costs, maps.paths, maps.optimal_cost)} == {torch.float32}
    assert maps.pixels.min() < 20
    assert maps.pixels.max() > 235


def test_costs_are_those_of_the_kinds_and_all_kinds_are_common(maps: Maps) -> None:
    for kind, cost in enumerate((0.8, 1.2, 5.3, 7.7, 9.2)):
        assert (maps.costs[maps.kinds == kind] == cost).all()
        assert (maps.kinds == kind).float().mean() > 0.1
    assert list(KINDS) == ["plains", "grass", "forest", "swamp", "mountain"]


def test_labels_are_optimal_by_another_solver(maps: Maps) -> None:
    for costs, path, best in zip(maps.costs[:40], maps.paths, maps.optimal_cost, strict=False):
        exact = np.round(costs.double().numpy(), 1)
        assert optimum(exact) == pytest.approx(best.item(), rel=1e-6)
        assert (exact * path.numpy()).sum() == pytest.approx(best.item(), rel=1e-6)
        assert leads(path.numpy())


def test_the_straight_diagonal_is_never_optimal(maps: Maps) -> None:
    straight = torch.eye(12).expand_as(maps.paths)
    assert ((straight * maps.costs).sum((1, 2)) > maps.optimal_cost + 0.05).all()
    assert path_metrics(straight, maps).optimal_path_rate == 0
    assert cost_metrics(torch.ones_like(maps.costs), maps).optimal_path_rate == 0


@pytest.mark.parametrize("count", [1, 33, 299])
def test_fewer_maps_are_the_first_of_more(maps: Maps, folder: Path, count: int) -> None:
    fewer = draw_maps(count, 3, "train", folder, allow_sample=True)
    for field in dataclasses.fields(Maps):
        assert torch.equal(getattr(fewer, field.name), getattr(maps, field.name)[:count])


def test_blocks_splits_and_seeds_share_no_map(maps: Maps, folder: Path) -> None:
    others = [draw_maps(300, 3, split, folder, allow_sample=True) for split in SPLITS[1:]]
    others.append(draw_maps(300, 4, "train", folder, allow_sample=True))
    terrains = torch.cat([each.kinds for each in (maps, *others)]).flatten(1)
    assert len(terrains.unique(dim=0)) == 1200


def test_flags_name_the_side_of_like_neighbours() -> None:
    kinds = np.array([[[0, 1, 0], [1, 1, 0], [0, 0, 0]]], dtype=np.uint8)
    flags = terrain.like_neighbours(kinds)[0]
    assert flags[1, 1] == NORTH + WEST
    assert flags[2, 2] == NORTH + WEST + EAST + SOUTH  # beyond the edge, terrain goes on
    assert flags[0, 2] == SOUTH + NORTH + EAST
    assert flags[0, 0] == NORTH + WEST


def test_a_cell_shows_the_tile_of_its_kind_and_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terrain, "MAP_GAIN", 0.0)
    monkeypatch.setattr(terrain, "CELL_GAIN", 0.0)
    monkeypatch.setattr(terrain, "PIXEL_NOISE", 0.0)
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (5, 16, 3, 8, 8)).astype(np.float32)
    kinds = rng.integers(0, 5, (2, 12, 12)).astype(np.uint8)
    pixels = terrain.draw_pixels(kinds, tiles, rng)
    for _, i, j in ((0, 5, 7), (1, 3, 10), (1, 6, 1)):
        here = kinds[_, i, j]
        flags = NORTH * (kinds[_, i - 1, j] == here) + EAST * (kinds[_, i, j + 1] == here)
        flags += SOUTH * (kinds[_, i + 1, j] == here) + WEST * (kinds[_, i, j - 1] == here)
        assert (pixels[_, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8] == tiles[here, flags]).all()


def test_brightness_varies_as_stated() -> None:
    grey = np.full((5, 16, 3, 8, 8), 100, dtype=np.float32)
    kinds = np.zeros((200, 12, 12), dtype=np.uint8)
    pixels = terrain.draw_pixels(kinds, grey, np.random.default_rng(0)).astype(np.float32)
    cells = pixels.reshape(200, 3, 12, 8, 12, 8).transpose(0, 2, 4, 1, 3, 5).reshape(200, 144, -1)
    assert cells.std(axis=2).mean() == pytest.approx(10, rel=0.02)
    means = cells.mean(axis=2) / 100
    assert means.mean(axis=1).std() == pytest.approx(0.12, rel=0.15)
    assert (means.std(axis=1) / means.mean(axis=1)).mean() == pytest.approx(0.08, rel=0.05)
    assert means.mean() == pytest.approx(1, abs=0.03)


def test_noise_on_black_and_white_does_not_wrap_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terrain, "MAP_GAIN", 0.0)
    monkeypatch.setattr(terrain, "CELL_GAIN", 0.0)
    tiles, kinds = np.zeros((5, 16, 3, 8, 8), dtype=np.float32), np.zeros((9, 12, 12), dtype=np.uint8)
    assert terrain.draw_pixels(kinds, tiles, np.random.default_rng(1)).max() < 80
    assert terrain.draw_pixels(kinds, tiles + 255, np.random.default_rng(1)).min() > 175


def sheet(place: Path, tags: str, pixels: np.ndarray) -> tuple[Path, Path]:
    Image.fromarray(pixels).save(place / "tiles.png")
    head = '[info]\nartists = "9, 9"\n[grid_main]\nx_top_left = 0\ny_top_left = 0\ndx = 30\ndy = 30\n'
    tail = '\n}\n[grid_small]\nx_top_left = 0\ny_top_left = 0\ndx = 15\ndy = 15\ntiles = {\n 0, 0, "small"\n}\n'
    (place / "tiles.spec").write_text(head + 'tiles = { "row", "column", "tag"\n' + tags + tail)
    return place / "tiles.png", place / "tiles.spec"


def all_tags(separator: str = "\n") -> str:
    lines = ['0, 0, "t.l0.grassland1"']
    for row, name in enumerate(("plains", "forest", "swamp", "mountains"), 1):
        tags = [f'"t.l0.{name}_n{i & 1}e{i >> 1 & 1}s{i >> 2 & 1}w{i >> 3}"' for i in range(16)]
        lines.append(f"{row}, 1, " + f" ; a, comment\n {separator}".join(f"{tag}," for tag in tags))
    return "\n".join(lines)


def test_names_on_continuation_lines_and_see_through_tiles(tmp_path: Path) -> None:
    pixels = np.zeros((150, 60, 4), dtype=np.uint8)
    pixels[:30, :30] = (0, 100, 0, 255)
    pixels[30:, 30:] = (200, 0, 40, 51)  # one fifth opaque
    pixels[60:90, 30:] = (200, 0, 40, 255)
    tiles = cell_pictures(read_sheet(*sheet(tmp_path, all_tags(), pixels)))
    assert tiles.shape == (5, 16, 3, 8, 8)
    assert np.allclose(tiles[0].transpose(0, 2, 3, 1), (40, 80, 8), atol=1e-4)
    assert np.allclose(tiles[1].transpose(0, 2, 3, 1), (0, 100, 0), atol=1e-4)
    assert np.allclose(tiles[2].transpose(0, 2, 3, 1), (200, 0, 40), atol=1e-4)


def test_each_side_of_the_stand_in_has_its_tile(folder: Path) -> None:
    """The stand-in has tile number n + 2 e + 4 s + 8 w of swamp in row 8; averages are taken over areas."""
    tiles = load_tiles(folder, allow_sample=True)
    pixels = np.asarray(Image.open(folder / "terrain_tiles" / "tiles.png")).astype(float)
    for flags in (NORTH, EAST, SOUTH, WEST, NORTH + WEST, 15):
        square = pixels[8 * 30 : 9 * 30, flags * 30 : flags * 30 + 30, :3]
        fine = square.repeat(4, axis=0).repeat(4, axis=1)  # 120 = 8 x 15: every target pixel is 15 x 15 of these
        areas = fine.reshape(8, 15, 8, 15, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
        assert np.allclose(tiles[list(KINDS).index("swamp"), flags], areas, atol=1e-3)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda text: text.replace("[grid_main]", "[other]"), "no section"),
        (lambda text: text.replace("dx = 30", "dx = wide", 1), "no number dx"),
        (lambda text: text.replace("t.l0.swamp_n1e0s0w0", "t.l0.marsh"), "swamp_n1e0s0w0"),
        (lambda text: text.replace("4, 1, ", "9, 1, "), "outside tiles.png"),
    ],
)
def test_a_broken_list_is_told_in_one_line(tmp_path: Path, break_it: object, message: str) -> None:
    picture, names = sheet(tmp_path, all_tags(), np.zeros((150, 60, 4), dtype=np.uint8))
    names.write_text(break_it(names.read_text()))  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as told:
        cell_pictures(read_sheet(picture, names))
    assert "\n" not in str(told.value)


def test_an_unreadable_picture_is_told_in_one_line(tmp_path: Path) -> None:
    picture, names = sheet(tmp_path, all_tags(), np.zeros((150, 60, 4), dtype=np.uint8))
    picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read") as told:
        read_sheet(picture, names)
    assert "\n" not in str(told.value)


def test_the_sample_has_to_be_allowed_and_requests_sensible(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sample"):
        draw_maps(1, 0, "train", folder)
    with pytest.raises(UserError, match="missing"):
        draw_maps(1, 0, "train", tmp_path)
    with pytest.raises(UserError, match="unknown split 'dev'"):
        draw_maps(1, 0, "dev", folder, allow_sample=True)  # type: ignore[arg-type]
    for count, seed in ((0, 0), (1, -1)):
        with pytest.raises(UserError, match="maps of seed"):
            draw_maps(count, seed, "train", folder, allow_sample=True)


@pytest.fixture
def grid() -> Maps:
    """Two copies of a 3 x 3 grid whose only optimum, of cost 4, goes down the left and across below."""
    costs = torch.tensor([[1.0, 9, 1], [1, 9, 1], [9, 1, 1]]).expand(2, 3, 3)
    path = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 1]]).expand(2, 3, 3)
    return Maps(torch.zeros(2, 3, 24, 24), torch.zeros(2, 3, 3), costs, path, torch.tensor([4.0, 4.0]))


def test_metrics_on_a_grid_by_hand(grid: Maps) -> None:
    straight = torch.eye(3)  # costs 1 + 9 + 1
    metrics = path_metrics(torch.stack([grid.paths[0], straight]), grid)
    assert metrics.optimal.tolist() == metrics.exact.tolist() == [True, False]
    assert metrics.ratio.tolist() == pytest.approx([1, 4 / 11])
    assert metrics.cost_ratio == pytest.approx((1 + 4 / 11) / 2)
    assert metrics.optimal_path_rate == metrics.exact_match_rate == 0.5
    assert cost_metrics(grid.costs, grid).optimal_path_rate == 1


def test_an_equally_cheap_path_is_optimal_without_being_the_label(grid: Maps) -> None:
    costs = torch.ones(2, 3, 3)
    costs[:, 1, 1] = 9
    below, above = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 1]]), torch.tensor([[1.0, 1, 0], [0, 0, 1], [0, 0, 1]])
    maps = dataclasses.replace(grid, costs=costs, paths=below.expand(2, 3, 3))
    metrics = path_metrics(torch.stack([below, above]), maps)
    assert metrics.optimal_path_rate == 1
    assert metrics.cost_ratio == 1
    assert metrics.exact.tolist() == [True, False]


def test_a_prediction_that_does_not_lead_anywhere_has_ratio_zero(grid: Maps) -> None:
    nothing, gap, wasteful = torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 0, 1])), torch.ones(3, 3)
    assert path_metrics(torch.stack([nothing, gap]), grid).valid.tolist() == [False, False]
    assert path_metrics(torch.stack([nothing, gap]), grid).cost_ratio == 0
    assert path_metrics(torch.stack([wasteful, wasteful]), grid).ratio.tolist() == pytest.approx([4 / 33] * 2)


def test_ratios_stay_below_one_and_true_costs_reach_it(maps: Maps) -> None:
    noisy = maps.costs * torch.rand(maps.costs.shape).mul(2).exp()
    metrics = cost_metrics(noisy, maps)
    assert metrics.ratio.max() <= 1
    assert (metrics.ratio[~metrics.optimal] < 1).all()
    assert metrics.valid.all()
    assert 0 < metrics.optimal_path_rate < 1
    truth = cost_metrics(3 * maps.costs, maps)
    assert truth.optimal_path_rate == truth.cost_ratio == 1
    assert truth.exact_match_rate < 1  # most maps have several optimal paths


def test_metrics_refuse_what_is_no_path(maps: Maps) -> None:
    with pytest.raises(ValueError, match="shape"):
        path_metrics(maps.paths[:5], maps)
    with pytest.raises(ValueError, match="indicators"):
        path_metrics(maps.paths * 0.5, maps)
    with pytest.raises(ValueError, match="cost"):
        cost_metrics(-maps.costs, maps)


@pytest.mark.data
def test_the_real_tiles_look_as_their_names_say() -> None:
    """Mountains are the greyest and brightest, plains lighter than grass, swamp the bluest; like sides join."""
    tiles = load_tiles(DATA)
    red, green, blue = tiles.mean(axis=(1, 3, 4)).T
    kinds = dict(zip(KINDS, range(5)))
    assert ((green - blue) / green).argmin() == kinds["mountain"]
    assert red[kinds["plains"]] > red[kinds["grass"]]
    assert (blue / (red + green)).argsort()[-2:].tolist().count(kinds["swamp"]) == 1
    grass = tiles[kinds["grass"], 15].mean(axis=(1, 2))
    edges = {NORTH: np.s_[:, 0, :], SOUTH: np.s_[:, -1, :], WEST: np.s_[:, :, 0], EAST: np.s_[:, :, -1]}
    for side, edge in edges.items():  # plains fade into grass where the neighbour is another
        alone, joined = (
            np.abs(tiles[kinds["plains"], flags][edge].mean(axis=1) - grass).sum() for flags in (15 - side, 15)
        )
        assert alone < 0.7 * joined
