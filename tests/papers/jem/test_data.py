"""Parts, labelled subsets, batches and out-of-distribution sets, on the samples in the sets' own formats."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from papers.jem import data as jem_data
from papers.jem.data import (
    Data,
    coloured,
    crop_and_mirror,
    cut_tiles,
    grey,
    interpolations,
    labelled_batch,
    labelled_subset,
    load_data,
    load_squares,
    out_of_distribution_sets,
    scale,
    unlabelled_batch,
)
from shared.data.samples import write_samples
from shared.errors import UserError
from shared.paths import DATA


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples in place of `data/`."""
    place = tmp_path_factory.mktemp("data")
    write_samples(place)
    return place


def clothes(folder: Path, per_class: int | None = 3, seed: int = 0) -> Data:
    return load_data("fashion_mnist", per_class, seed, sample=True, folder=folder)


def photographs(folder: Path) -> Data:
    return load_data("cifar10", 2, 0, sample=True, folder=folder)


def rows(x: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in x}


# --- parts ---


def test_no_image_is_in_two_parts(folder: Path) -> None:
    """A quarter of the sample is held out, and train, validation and test share nothing."""
    data = clothes(folder)
    assert data.train.shape == (384, 1, 28, 28)
    assert data.validation.shape == (128, 1, 28, 28)
    assert len(data.train_labels) == 384
    assert len(data.validation_labels) == 128
    parts = [rows(part) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [384, 128, 256]
    assert all(not a & b for a, b in itertools.combinations(parts, 2))


def test_which_labels_are_known_depends_on_the_seed_only(folder: Path) -> None:
    first, again, other = clothes(folder), clothes(folder), clothes(folder, seed=1)
    assert torch.equal(first.labelled, again.labelled)
    assert not torch.equal(first.labelled, other.labelled)
    assert torch.equal(first.train, other.train)
    assert first.sha256() == again.sha256() != other.sha256()
    assert first.to("cpu").sha256() == first.sha256()
    assert first.to("meta").labelled.device.type == "meta"


def test_labelled_subsets_are_balanced_nested_and_without_repetition() -> None:
    labels = torch.randint(10, (2000,))
    large = labelled_subset(labels, 50, 3)
    assert len(large.unique()) == 500
    assert torch.equal(torch.bincount(labels[large]), torch.full((10,), 50))
    assert torch.equal(labels[large].view(50, 10), torch.arange(10).expand(50, 10))
    assert torch.equal(labelled_subset(labels, 7, 3), large[:70])
    assert torch.equal(labelled_subset(labels, None, 3), torch.arange(2000))


def test_every_image_of_a_class_may_be_chosen() -> None:
    """Over 400 seeds each of 40 images is chosen about 1 time in 4 (mean 100, standard deviation 8.7)."""
    labels = torch.arange(80) % 2
    times = sum(torch.bincount(labelled_subset(labels, 10, seed, 2), minlength=80) for seed in range(400))
    assert times.min() > 60
    assert times.max() < 140


def test_refusals(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot label 1000 images of each class: the smallest class has"):
        clothes(folder, per_class=1000)
    with pytest.raises(UserError, match="cannot label 0"):
        clothes(folder, per_class=0)
    with pytest.raises(UserError, match="choose fashion_mnist or cifar10"):
        load_data("svhn", 3, 0, sample=True, folder=folder)
    with pytest.raises(UserError, match="test sample"):
        load_data("fashion_mnist", 3, 0, folder=folder)
    with pytest.raises(UserError, match="larger than the 30 labelled images"):
        labelled_batch(clothes(folder), 31, 0, 0)
    with pytest.raises(UserError, match="larger than the 384 training images"):
        unlabelled_batch(clothes(folder), 385, 0, 0)


# --- batches ---


def test_scaling_is_exact_at_the_ends() -> None:
    levels = scale(torch.arange(256, dtype=torch.uint8))
    assert levels[0] == -1
    assert levels[255] == 1
    torch.testing.assert_close(levels.diff(), torch.full((255,), 2 / 255))


@pytest.mark.parametrize("load", [clothes, photographs])
def test_batches_are_a_function_of_seed_and_step(load, folder: Path) -> None:
    """Whatever was drawn before from torch's generator or asked for in between."""
    data = load(folder)
    x, y = labelled_batch(data, 8, 1, 5)
    u = unlabelled_batch(data, 8, 1, 5)
    torch.manual_seed(99)
    unlabelled_batch(data, 8, 1, 6)
    again, labels = labelled_batch(data, 8, 1, 5)
    assert torch.equal(again, x)
    assert torch.equal(labels, y)
    assert torch.equal(unlabelled_batch(data, 8, 1, 5), u)
    assert not torch.equal(unlabelled_batch(data, 8, 2, 5), u)
    assert not torch.equal(unlabelled_batch(data, 8, 1, 6), u)
    assert x.dtype == torch.float32
    assert -1 <= x.min() < x.max() <= 1


def test_labelled_batches_hold_labelled_images_with_their_labels(folder: Path) -> None:
    """An epoch of three batches of ten shows each of the thirty once."""
    data = clothes(folder)
    known = {scale(data.train[i]).numpy().tobytes(): int(data.train_labels[i]) for i in data.labelled.tolist()}
    seen = []
    for step in range(3):
        x, y = labelled_batch(data, 10, 0, step)
        assert [known[image.numpy().tobytes()] for image in x] == y.tolist()
        seen += [image.numpy().tobytes() for image in x]
    assert set(seen) == set(known)
    assert len(seen) == len(known) == 30


def test_the_unlabelled_stream_shows_every_training_image(folder: Path) -> None:
    data = clothes(folder)
    seen = torch.cat([unlabelled_batch(data, 64, 0, step) for step in range(6)])
    assert rows(seen) == rows(scale(data.train))


def test_the_two_streams_have_orders_of_their_own(folder: Path) -> None:
    """Even where all labels are known."""
    data = clothes(folder, per_class=None)
    assert not torch.equal(labelled_batch(data, 64, 0, 0)[0], unlabelled_batch(data, 64, 0, 0))


def test_crops_are_those_of_numpy_with_a_reflected_border() -> None:
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    places = torch.tensor([4, 0, 0, 2, 1, 3])
    mirrored = torch.tensor([True, False, True, False, True, False])
    shift = torch.tensor([[-4, 4], [0, 0], [4, -4], [1, -2], [0, 0], [-4, -4]])
    ours = crop_and_mirror(pixels, places, mirrored, shift, 32)
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    for row, place in enumerate(places.tolist()):
        top, left = (shift[row] + 4).tolist()
        crop = padded[place][:, top : top + 32, left : left + 32]
        np.testing.assert_array_equal(ours[row].numpy(), crop[..., ::-1] if mirrored[row] else crop)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_photographs_are_augmented_and_clothes_are_not(folder: Path) -> None:
    """In batches of photographs most images are none of the data set, and about half of the unmoved are mirrored."""
    plain = rows(scale(clothes(folder).train))
    assert rows(unlabelled_batch(clothes(folder), 64, 0, 0)) <= plain
    data = photographs(folder)
    x = unlabelled_batch(data, 256, 0, 0).contiguous()
    assert len(rows(x) & rows(scale(data.train))) < 20
    centre = F.interpolate(x.mean(1, keepdim=True), 4, mode="area")
    assert centre.std() > 0.1


# --- out of the distribution ---


def test_sets_have_the_shape_of_the_test_images(folder: Path) -> None:
    grey_sets = out_of_distribution_sets(clothes(folder), 40, 0, sample=True, folder=folder)
    colour_sets = out_of_distribution_sets(photographs(folder), 40, 0, sample=True, folder=folder)
    assert set(grey_sets) == {"uniform", "interpolation", "tiles", "mnist"}
    assert set(colour_sets) == {"uniform", "interpolation", "tiles", "fashion_mnist"}
    for sets, shape in ((grey_sets, (40, 1, 28, 28)), (colour_sets, (40, 3, 32, 32))):
        for images in sets.values():
            assert images.shape == shape
            assert images.dtype == torch.float32
            assert -1 <= images.min() < images.max() <= 1
    again = out_of_distribution_sets(clothes(folder), 40, 0, sample=True, folder=folder)
    other = out_of_distribution_sets(clothes(folder), 40, 1, sample=True, folder=folder)
    for name, images in grey_sets.items():
        assert torch.equal(again[name], images)
        assert torch.equal(other[name], images) == (name == "mnist")


def test_interpolations_are_means_of_two_different_images() -> None:
    """With one lit pixel an image, each mean shows its two images, and no image is in more than two pairs."""
    pixels = (255 * torch.eye(9)).to(torch.uint8).view(9, 1, 3, 3)
    means = interpolations(pixels, 100, torch.Generator().manual_seed(0)).view(-1, 9)
    assert means.shape == (9, 9)
    assert ((means == 0).sum(1) == 2).all()
    assert ((means == 0).sum(0) == 2).all()
    assert len(interpolations(pixels, 4, torch.Generator())) == 4


def test_coloured_images_are_one_colour_times_the_grey_one() -> None:
    pixels = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    colours = coloured(pixels, 32, torch.Generator().manual_seed(0)).float()
    assert colours[:, :, :2].sum() == colours[:, :, :, -2:].sum() == 0
    inside = colours[:, :, 2:-2, 2:-2].flatten(2)
    levels = pixels.float().flatten(2)
    strength = (inside * levels).sum(2, keepdim=True) / levels.square().sum(2, keepdim=True)
    assert (inside - strength * levels).abs().max() <= 0.6  # rounding
    assert strength.std(1).min() > 0.01


def test_grey_is_that_of_pillow() -> None:
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).convert("L")
    ours = grey(pixels)[0, 0].numpy().astype(int)
    assert np.abs(ours - np.asarray(picture).astype(int)).max() <= 1


def test_squares_are_those_of_the_sheet_on_black(folder: Path) -> None:
    squares = load_squares(folder, sample=True)
    with Image.open(folder / "terrain_tiles" / "tiles.png") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    assert squares.shape == (23 * 20, 3, 30, 30)
    np.testing.assert_array_equal(squares[27].permute(1, 2, 0).numpy(), sheet[30:60, 210:240])


def test_transparent_squares_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three squares: opaque white, half transparent white, nothing."""
    sheet = np.full((30, 90, 4), 255, dtype=np.uint8)
    sheet[:, 30:60, 3] = 128
    sheet[:, 60:, 3] = 10
    (tmp_path / "terrain_tiles").mkdir()
    Image.fromarray(sheet).save(tmp_path / "terrain_tiles" / "tiles.png")
    monkeypatch.setattr(jem_data, "check", lambda *_, **__: "sample")
    squares = load_squares(tmp_path, sample=True)
    assert squares.shape == (2, 3, 30, 30)
    assert squares[0].unique().tolist() == [255]
    assert squares[1].unique().tolist() == [128]
    (tmp_path / "terrain_tiles" / "tiles.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="the tiles cannot be read"):
        load_squares(tmp_path, sample=True)


@pytest.mark.parametrize("side", [28, 32])
def test_art_is_cut_from_the_squares(side: int) -> None:
    """Every cut-out is a part of its square, or of the square with a reflected border, or the mirror image of one."""
    squares = torch.randint(0, 256, (3, 1, 30, 30), dtype=torch.uint8)
    border = max(side - 30, 0)
    padded = np.pad(squares.numpy(), ((0, 0), (0, 0), (border, border), (border, border)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3)).reshape(-1, side, side)
    possible = {np.ascontiguousarray(each).tobytes() for w in windows for each in (w, w[:, ::-1])}
    art = cut_tiles(squares, side, 60, torch.Generator().manual_seed(0)).contiguous()
    assert rows(art) <= possible
    assert len(rows(art)) > 30


@pytest.mark.data
def test_the_real_sets() -> None:
    data = load_data("fashion_mnist", 100, 0)
    assert [len(x) for x in (data.train, data.labelled, data.validation, data.test)] == [55_000, 1000, 5000, 10_000]
    sets = out_of_distribution_sets(data, 1000, 0, folder=DATA)
    assert {name: len(images) for name, images in sets.items()} == dict.fromkeys(sets, 1000)
    assert len(load_squares()) >= 96
    assert len(load_data("cifar10", None, 0).labelled) == 45_000
