"""Archives give wanted members and nothing else, and hostile ones are refused."""

import contextlib
import gzip
import io
import os
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.data.archives import extract, gunzip
from shared.errors import UserError


def make_tar(members, mode="w:xz"):
    """A tar of (name, content); content None makes a link to /etc/passwd."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if content is None else 0o100644) << 16
            archive.writestr(info, b"/etc/passwd" if content is None else content)
    return buffer.getvalue()


def make_deb(members):
    """A Debian package: an ar archive of three members, each padded to an even length."""
    parts = [(b"debian-binary", b"2.0\n"), (b"control.tar.xz", b"odd"), (b"data.tar.xz", make_tar(members))]
    deb = b"!<arch>\n"
    for name, content in parts:
        fields = (name, 16), (b"0", 12), (b"0", 6), (b"0", 6), (b"100644", 8), (b"%d" % len(content), 10)
        deb += b"".join(text.ljust(width) for text, width in fields) + b"`\n" + content + b"\n" * (len(content) % 2)
    return deb


MAKERS = [pytest.param(make_tar, id="tar"), pytest.param(make_zip, id="zip"), pytest.param(make_deb, id="deb")]


def take(tmp_path, content, wanted):
    path = tmp_path / "archive"
    path.write_bytes(content)
    return dict(extract(path, wanted))


@pytest.mark.parametrize("make", MAKERS)
def test_wanted_members_come_out_and_nothing_is_written(tmp_path, make):
    archive = make([("./a/one", b"1"), ("a/two", b"22"), ("b", b"333")])
    assert take(tmp_path, archive, {"a/one": 1, "b": 3}) == {"a/one": b"1", "b": b"333"}
    assert os.listdir(tmp_path) == ["archive"]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "..\\evil"])
def test_a_member_that_points_outside_is_refused_even_when_it_is_not_wanted(tmp_path, make, name):
    with pytest.raises(UserError, match="outside"):
        take(tmp_path, make([("good", b"1"), (name, b"2")]), {"good": 1})


@pytest.mark.parametrize("make", MAKERS)
def test_a_link_in_place_of_a_wanted_file_is_refused(tmp_path, make):
    with pytest.raises(UserError, match="no ordinary file"):
        take(tmp_path, make([("good", None)]), {"good": 100})


@pytest.mark.parametrize("make", [*MAKERS[:1], MAKERS[2]])
def test_a_member_that_stands_twice_is_refused(tmp_path, make):
    with pytest.raises(UserError, match="twice"):
        take(tmp_path, make([("good", b"1"), ("good", b"2")]), {"good": 1})


@pytest.mark.parametrize("make", MAKERS)
def test_no_more_is_read_than_the_catalogue_expects(tmp_path, make):
    with pytest.raises(UserError, match="larger than the 10 bytes"):
        take(tmp_path, make([("bomb", bytes(1_000_000))]), {"bomb": 10})


@pytest.mark.parametrize("make", MAKERS)
def test_a_missing_member_is_named(tmp_path, make):
    with pytest.raises(UserError, match="does not hold absent"):
        take(tmp_path, make([("good", b"1")]), {"good": 1, "absent": 1})


@pytest.mark.parametrize("make", MAKERS)
@given(data=st.data())
def test_a_truncated_archive_never_gives_other_content(tmp_path_factory, make, data):
    whole = make([("good", b"the right content")])
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with contextlib.suppress(UserError):
        assert take(tmp_path_factory.mktemp("cut"), cut, {"good": 100}) == {"good": b"the right content"}


def test_gunzip_is_bounded_and_names_damage():
    packed = gzip.compress(b"x" * 100)
    assert gunzip(packed, 100) == b"x" * 100
    with pytest.raises(UserError, match="longer than the 99"):
        gunzip(packed, 99)
    with pytest.raises(UserError, match="gzip"):
        gunzip(packed[:-9], 100)
