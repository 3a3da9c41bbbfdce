"""Damaged, truncated, swapped and sample files are told apart from the real ones; loaders read what they should."""

import os
import shutil
import struct

import numpy as np
import pytest
import torch

from shared.data import images, manifest, samples, verify
from shared.errors import UserError
from shared.paths import DATA

LOADERS = {"mnist": images.load_mnist, "fashion_mnist": images.load_fashion_mnist, "cifar10": images.load_cifar10}


@pytest.fixture(autouse=True)
def own_memory(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(verify, "MEMORY", tmp_path_factory.mktemp("memory") / "verified.sqlite3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What stands for data/, with every sample in it; tests that change a file change a copy."""
    place = tmp_path_factory.mktemp("samples")
    samples.write_samples(place)
    return place


@pytest.fixture
def full(tmp_path, monkeypatch):
    """A small set "toy" of two files with a manifest of its own, so that full sets can be tested without a network."""
    monkeypatch.setattr(manifest, "FOLDER", tmp_path / "manifests")
    content = {"a.bin": b"first" * 10, "b/c.bin": b"other" * 10}
    manifest.FOLDER.mkdir()
    rows = manifest.render(manifest.describe(data, path) for path, data in content.items())
    (manifest.FOLDER / "toy.tsv").write_text(rows, encoding="utf-8")
    for path, data in content.items():
        (tmp_path / "data" / "toy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "toy" / path).write_bytes(data)
    return tmp_path / "data"


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_sample_is_loaded_only_when_it_is_asked_for(folder, name, split):
    loaded = LOADERS[name](split, folder=folder, allow_sample=True)
    channels, side = (3, 32) if name == "cifar10" else (1, 28)
    assert loaded.profile == "sample"
    assert loaded.pixels.dtype == torch.uint8
    assert loaded.pixels.shape[1:] == (channels, side, side)
    assert loaded.labels.shape == loaded.pixels.shape[:1]
    assert loaded.labels.dtype == torch.int64
    assert set(loaded.labels.tolist()) == set(range(10))
    with pytest.raises(UserError, match=f"test sample.*allow_sample.*make data ONLY={name}"):
        LOADERS[name](split, folder=folder)


def test_every_sample_is_as_catalogued(folder):
    for name in manifest.names():
        if manifest.read(name, sample=True):
            assert verify.files(name, folder=folder, allow_sample=True)


def test_pixels_and_labels_lie_where_the_formats_say(folder):
    raw = (folder / "cifar10" / "test_batch.bin").read_bytes()
    loaded = images.load_cifar10("test", folder=folder, allow_sample=True)
    image, channel, row, column = 7, 1, 3, 5
    assert loaded.labels[image] == raw[3073 * image]
    assert loaded.pixels[image, channel, row, column] == raw[3073 * image + 1 + 1024 * channel + 32 * row + column]
    raw = (folder / "mnist" / "t10k-images-idx3-ubyte").read_bytes()
    assert (
        images.load_mnist("test", folder=folder, allow_sample=True).pixels[7, 0, 14, 15]
        == raw[16 + 784 * 7 + 28 * 14 + 15]
    )


def test_cifar10_sample_is_cut_from_the_photographs(folder):
    loaded = images.load_cifar10("train", folder=folder, allow_sample=True)
    patch = loaded.pixels[0].permute(1, 2, 0).numpy()
    found = [
        np.array_equal(photograph[y : y + 32, x : x + 32], patch)
        for photograph in samples.photographs()
        for y in range(0, 416, 32)
        for x in range(0, 640, 32)
    ]
    assert sum(found) == 1


def test_unknown_split_is_refused(folder):
    with pytest.raises(UserError, match="valid"):
        images.load_mnist("valid", folder=folder, allow_sample=True)


def test_a_flipped_byte_is_found_even_behind_old_time_stamps(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "_YOUNG_NS", -1)
    folder = shutil.copytree(folder, tmp_path / "copy")
    path = folder / "mnist" / "train-images-idx3-ubyte"
    images.load_mnist("train", folder=folder, allow_sample=True)
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is damaged.*expected .*make data ONLY=mnist"):
        images.load_mnist("train", folder=folder, allow_sample=True)


def test_truncated_missing_and_swapped_files_are_named_with_the_repair(full):
    one, two = full / "toy" / "a.bin", full / "toy" / "b" / "c.bin"
    assert verify.check("toy", folder=full) == "full"
    assert verify.files("toy", folder=full) == {"a.bin": one, "b/c.bin": two}
    spare = full / "spare"
    for old, new in ((one, spare), (two, one), (spare, two)):
        os.rename(old, new)
    with pytest.raises(UserError, match=r"a\.bin holds what belongs in b/c\.bin.*repair.*make data ONLY=toy"):
        verify.verified(one, folder=full)
    one.write_bytes(b"first" * 9)
    with pytest.raises(UserError, match=r"a\.bin is damaged.*45 bytes, expected 50"):
        verify.verified(one, folder=full)
    one.unlink()
    with pytest.raises(UserError, match=r"a\.bin is missing; fetch it"):
        verify.verified(one, folder=full)


def test_a_file_outside_the_catalogue_is_not_vouched_for(full):
    (full / "toy" / "new").write_bytes(b"")
    with pytest.raises(UserError, match="not in the catalogue"):
        verify.verified(full / "toy" / "new", folder=full)
    with pytest.raises(UserError, match="not below"):
        verify.verified(full / ".." / "elsewhere", folder=full)


def test_an_unchanged_file_is_hashed_once(full, monkeypatch):
    monkeypatch.setattr(verify, "_YOUNG_NS", -1)
    path = full / "toy" / "a.bin"
    digest = verify.sha256_of(path)
    monkeypatch.setattr(verify.hashlib, "file_digest", None)  # from here on hashing is impossible
    assert verify.sha256_of(path) == digest
    path.write_bytes(b"changed")
    with pytest.raises(TypeError):
        verify.sha256_of(path)


def test_a_broken_memory_costs_time_only(full, monkeypatch):
    monkeypatch.setattr(verify, "_YOUNG_NS", -1)
    verify.MEMORY.write_bytes(b"this is no database, and long enough to be looked at as one" * 20)
    assert verify.check("toy", folder=full) == "full"


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x09\x01\0\0\0\x01x", b"\0\0\x08\x01\0\0\0\x02x"])
def test_a_malformed_idx_file_is_refused(tmp_path, content):
    (tmp_path / "idx").write_bytes(content)
    with pytest.raises(UserError, match="idx"):
        images.read_idx(tmp_path / "idx")


def test_an_idx_array_of_any_rank_is_read(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "idx").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + values.tobytes())
    assert images.read_idx(tmp_path / "idx").tolist() == values.tolist()


@pytest.mark.data
@pytest.mark.parametrize(("name", "train", "test", "mean"), [
    ("mnist", 60000, 10000, [33.3184]),
    ("fashion_mnist", 60000, 10000, [72.9404]),
    ("cifar10", 50000, 10000, [125.3069, 122.9504, 113.8654]),
])  # fmt: skip
def test_full_sets_have_the_published_sizes_and_means(name, train, test, mean):
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not fetched")
    loaded = LOADERS[name]("train")
    assert (loaded.profile, len(loaded.labels), len(LOADERS[name]("test").labels)) == ("full", train, test)
    assert loaded.pixels.double().mean((0, 2, 3)).tolist() == pytest.approx(mean, abs=1e-3)
