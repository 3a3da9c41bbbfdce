"""The catalogue: well-formed, complete, and telling when it is not."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.data import catalogue, manifest
from shared.data.manifest import Entry
from shared.errors import UserError
from shared.paths import ROOT

SETS = catalogue.load()

#: MD5 of the official files as their publishers and other projects print them, independent of this repository.
PUBLISHED_MD5 = {
    "mnist/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "mnist/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "fashion_mnist/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "cifar10/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "cifar10/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}


def test_catalogue_holds_every_set_and_each_has_a_manifest():
    assert set(SETS) == set(manifest.names())
    assert {"mnist", "fashion_mnist", "cifar10", "label_ranking", "speech", "movie_reviews"} <= set(SETS)
    assert {"graded_sentiment", "terrain_tiles", "efficientnet_lite0", "resnet50"} <= set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_official_addresses_come_first_and_a_package_can_always_step_in(name):
    kinds = [source.kind for source in SETS[name].sources]
    assert kinds == sorted(kinds, key=lambda kind: kind != "url")
    assert kinds[-1] != "url"


@pytest.mark.parametrize("name", SETS)
def test_archives_of_pip_and_npm_are_pinned_by_hash(name):
    assert all(source.sha256 for source in SETS[name].sources if source.kind in ("pip", "npm"))


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_a_sample_exactly_when_it_says_so(name):
    assert bool(SETS[name].sample_files) == (SETS[name].sample != "none")
    assert {entry.path for entry in SETS[name].sample_files} <= {entry.path for entry in SETS[name].files}
    # Something must differ, or a sample would pass for the real data.
    assert not SETS[name].sample_files or set(SETS[name].sample_files) - set(SETS[name].files)


def test_art_under_the_gpl_is_not_committed():
    gpl = [name for name, each in SETS.items() if "GPL" in each.licence]
    assert "terrain_tiles" in gpl
    assert not any((ROOT / "tests" / "data" / name).exists() or SETS[name].sample == "committed" for name in gpl)


def test_checksums_are_those_that_others_publish():
    listed = {f"{name}/{entry.path}": entry.md5 for name, each in SETS.items() for entry in each.files}
    assert {path: listed[path] for path in PUBLISHED_MD5} == PUBLISHED_MD5


def test_an_official_cifar10_file_is_ten_thousand_records_long():
    assert {entry.size for entry in SETS["cifar10"].files} == {10_000 * (1 + 3 * 32 * 32)}


def test_unknown_key_and_unknown_set_are_named(tmp_path):
    path = tmp_path / "catalogue.yaml"
    path.write_text(
        catalogue.PATH.read_text(encoding="utf-8").replace("licence: MIT", "license: MIT", 1), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"catalogue\.yaml.*licen[cs]e"):
        catalogue.load(path)
    with pytest.raises(UserError, match=r"cifar100.*mnist"):
        catalogue.choose(SETS, ["mnist", "cifar100"])


def test_choosing_keeps_the_catalogues_order_and_nothing_means_all():
    assert [each.name for each in catalogue.choose(SETS, ["cifar10", "mnist"])] == ["mnist", "cifar10"]
    assert [each.name for each in catalogue.choose(SETS, [])] == list(SETS)


_NAMES = st.text(st.characters(categories=["L", "N"], include_characters="-_. "), min_size=1, max_size=8)
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join).filter(manifest.safe_path)


@given(st.dictionaries(_PATHS, st.binary(max_size=20), max_size=5))
def test_a_manifest_survives_being_written_and_read(content):
    entries = sorted((manifest.describe(data, path) for path, data in content.items()), key=lambda entry: entry.path)
    assert manifest.parse(manifest.render(entries), "manifest") == tuple(entries)


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "a\\b", "", ".", "a//b", "a/"])
def test_a_manifest_with_a_path_that_leaves_its_folder_is_refused(path):
    line = manifest.render([Entry(path, 1, hashlib.sha256(b"").hexdigest(), hashlib.md5(b"").hexdigest())])
    with pytest.raises(UserError, match="line 2"):
        manifest.parse(line, "manifest")
