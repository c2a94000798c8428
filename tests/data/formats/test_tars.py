"""An index says where the members of a tar lie: as tarfile finds them, of this very file, and as far as it goes."""

import io
import os
import pickle
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evle.data.formats import tars
from evle.data.formats.listing import IMAGE_SUFFIXES
from evle.data.formats.tar_headers import TarDamage, tar_members
from evle.data.formats.tars import _File, index_of
from evle.errors import DataError, SampleError
from tars import caption_members, encoded, write_tar

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0\n\r"), min_size=1, max_size=120)


def entries(index):
    return [index[row] for row in range(len(index))]


def keys(index):
    return [entry.key for entry in entries(index)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_lie_where_tarfile_finds_them(members, format):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if format == tarfile.USTAR_FORMAT and len(name.encode()) > 100:
                continue  # this format has no such names
            tar.addfile(info, io.BytesIO(content))
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as tar:
        expected = [(info.name, (info.offset_data, info.size)) for info in tar if info.isreg()]
    found = [(name.rstrip("/"), span) for name, span in tar_members(stream, len(stream.getvalue()))]
    assert found == expected


def test_folders_links_and_a_systems_own_files_are_no_samples(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("a", tarfile.DIRTYPE), ("a/l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x"
            tar.addfile(info)
        for name in ("./a/1.jpg", "./a/1.txt", "a/._1.jpg", "a/._1.txt", "README"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert keys(index_of(str(path))) == ["a/1"]


def test_members_of_a_sample_are_read_at_their_places(tmp_path):
    index = index_of(str(write_tar(tmp_path / "0.tar", caption_members(3, 4))))
    assert keys(index) == index.all_keys() == ["000000003", "000000004"]
    entry = index[1]
    assert index.member(entry.image).read() == encoded(4)
    assert index.member(entry.text).read() == b"image 4"
    assert entry.second_image.size == 0
    member = pickle.loads(pickle.dumps(index.member(entry.image)))
    assert member.read() == encoded(4)
    assert str(member) == f"{tmp_path / '0.tar'} at byte {entry.image.offset:,}"


def test_a_file_that_falls_out_of_the_cache_stays_open_while_it_is_read(tmp_path, monkeypatch):
    index = index_of(str(write_tar(tmp_path / "0.tar", caption_members(0))))
    expected = index.member(index[0].image).read()
    monkeypatch.setattr("evle.data.formats.tars._opened", lambda path, stamp: _File(path))  # no cache holds it
    assert index.member(index[0].image).read() == expected


def test_threads_read_the_same_file_at_once(tmp_path):
    index = index_of(str(write_tar(tmp_path / "0.tar", caption_members(*range(40)))))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: index.member(index[row].image).read(), [*range(40)] * 5))
    assert found == [encoded(number) for number in range(40)] * 5


def test_the_index_is_kept_beside_the_tar_and_made_anew_when_the_tar_changed(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "0.tar", caption_members(1))
    first = index_of(str(path))
    assert first.file == str(path) + ".index"
    with monkeypatch.context() as patched:
        patched.setattr(tars, "_make_index", lambda *_: pytest.fail("the index was made again"))
        assert index_of(str(path)) == first
    member = first.member(first[0].image)
    assert member.read() == encoded(1)

    time.sleep(0.01)
    write_tar(path, caption_members(2))  # of the same size
    again = index_of(str(path))
    assert keys(again) == ["000000002"]
    assert again.member(again[0].image).read() == encoded(2)


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"no json\n", b'{"version": 1'])
def test_an_index_that_was_cut_short_is_made_anew(tmp_path, damage):
    path = write_tar(tmp_path / "0.tar", caption_members(1))
    index_of(str(path))
    file = tmp_path / "0.tar.index"
    whole = file.read_bytes()
    for content in (damage, whole[:-1], whole + b"x"):
        file.write_bytes(content)
        assert keys(index_of(str(path))) == ["000000001"]
        assert file.read_bytes() == whole


def test_the_index_may_lie_in_a_folder_of_choice_or_in_the_users_cache(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "here" / "0.tar", caption_members(1))
    other = write_tar(tmp_path / "there" / "0.tar", caption_members(2))
    chosen = [index_of(str(each), str(tmp_path / "cache")) for each in (path, other)]
    assert [keys(index) for index in chosen] == [["000000001"], ["000000002"]]
    assert {os.path.dirname(index.file) for index in chosen} == {str(tmp_path / "cache")}
    assert not (tmp_path / "here" / "0.tar.index").exists()

    (tmp_path / "here" / "0.tar.index").mkdir()  # nothing can be written there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert index_of(str(path)).file.startswith(str(tmp_path / "home" / "evle" / "shards" / "0.tar."))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"its index can be written neither .* name a folder with the option cache"):
        index_of(str(path), str(tmp_path / "file"))


def test_what_cannot_be_a_sample_is_counted_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 5000)
    members = [
        ("1.txt", "no image"),
        ("2.jpg", encoded(2)),
        ("3.jpg", bytes(6000)),
        ("3.txt", "huge"),
        ("4.jpg", encoded(4)),
        ("4.png", encoded(5)),
        ("4.txt", "two images"),
        ("5.npy", b"x"),
    ]
    index = index_of(str(write_tar(tmp_path / "0.tar", members)))
    assert keys(index) == ["4"]
    assert index.member(index[0].image).read() == encoded(4)
    assert index.left_out == {
        "no image": 2,
        "no image but a .npy, which is not read": 1,
        "no caption": 1,
        "over 0 MB": 1,
        "a second image in the same sample": 1,
    }
    assert {"1: no image", "2: no caption", "3.jpg: over 0 MB"} < set(index.named)


def test_a_key_that_comes_again_gets_a_name_of_its_own(tmp_path):
    index = index_of(str(write_tar(tmp_path / "0.tar", caption_members(1, 2, 1))))
    assert keys(index) == ["000000001", "000000002", "000000001~2"]


@pytest.mark.parametrize(
    ("names", "read", "left_out"),
    [
        ("1.jpg 2.jpg 1.jpg 2.jpg 1.txt 2.txt 1.txt 2.txt", "", 4),  # two sets, sorted by their endings together
        ("1.txt 2.txt 1.txt 2.txt 1.jpg 2.jpg 1.jpg 2.jpg", "", 4),
        ("1.jpg 2.jpg 1.jpg 1.txt 2.txt 1.txt", "2", 2),  # the first 1.txt comes after the second 1.jpg by chance
        ("1.txt 2.txt 1.jpg 1.txt 2.jpg 2.txt", "", 2),  # texts without images, then images with texts
        ("1.jpg 2.jpg 1.txt 2.txt 1.jpg 2.jpg 1.txt 2.txt", "1 2 1~2 2~2", 0),  # two sets, one after the other
        ("1.jpg 1.txt 2.jpg 2.txt 1.jpg 1.txt 2.jpg 2.txt 1.jpg 1.txt", "1 2 1~2 2~2 1~3", 0),
        ("1.jpg 1.txt 2.jpg 2.txt 1.jpg 2.jpg 1.txt 2.txt", "1 2 1~2 2~2", 0),
    ],
    ids=["images-texts", "texts-images", "by-chance", "texts-alone", "one-after-another", "three-sets", "two-orders"],
)
def test_samples_of_one_name_that_are_mixed_are_left_out(tmp_path, names, read, left_out):
    """An image got the caption of another image of its name."""
    index = index_of(str(write_tar(tmp_path / "0.tar", [(name, name) for name in names.split()])))
    assert keys(index) == read.split()
    reason = "ambiguous, as several samples of this name are mixed in the tar"
    assert index.left_out == ({reason: left_out} if left_out else {})
    assert not left_out or index.named[0] == f"1: {reason}; pack them into tars of their own"


def test_an_image_of_a_kind_that_is_not_read_is_named(tmp_path):
    members = [("1.heic", b"x"), ("1.txt", "one"), ("2.SVG", b"x"), ("2.txt", "two")]
    assert index_of(str(write_tar(tmp_path / "0.tar", members))).named == (
        "1: no image but a .heic, which is not read; convert it to JPEG or PNG",
        "2: no image but a .svg, which is not read; convert it to JPEG or PNG",
    )


@pytest.mark.parametrize("field", ["size", "length"])
def test_a_number_of_thousands_of_digits_is_damage_of_the_tar(tmp_path, field):
    record = b"6010 size=" + b"1" * 5999 + b"\n" if field == "size" else b"1" * 5000 + b" path=a\n"
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    path = write_tar(tmp_path / "0.tar", caption_members(1))
    whole = path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole + bytes(-len(whole) % 512) + info.tobuf() + record + bytes(-len(record) % 512 + 1024))
    index = index_of(str(path))
    assert keys(index) == ["000000001"]
    assert index.damage.startswith("an extended header of impossible size at byte ")


def test_a_tar_cut_short_gives_what_lies_before(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", caption_members(1, 2, 3)).read_bytes()
    full = index_of(str(tmp_path / "whole.tar"))
    assert full.damage == ""
    cut = tmp_path / "cut.tar"
    for size in range(512, len(whole), 100):
        cut.write_bytes(whole[:size])
        index = index_of(str(cut))
        assert [entry[:2] for entry in entries(index)] == [entry[:2] for entry in entries(full)][: len(index)]
        ends = [entry.json.offset + entry.json.size for entry in entries(full)]  # an image and its JSON are enough
        assert len(index) == sum(end <= size for end in ends)
        assert bool(index.damage) == (whole[:size].rstrip(b"\0") != whole.rstrip(b"\0") or size % 512 != 0), size
    cut.write_bytes(whole[:3000])
    assert "3,000: what follows is lost; fetch the shard again" in index_of(str(cut)).damage


def test_a_broken_header_ends_a_tar(tmp_path):
    path = write_tar(tmp_path / "0.tar", caption_members(1, 2, 3))
    place = index_of(str(path))[1].image.offset
    content = bytearray(path.read_bytes())
    content[place - 512 + 20] ^= 0xFF
    path.write_bytes(content)
    index = index_of(str(path))
    assert keys(index) == ["000000001"]
    assert index.damage.startswith(f"a broken header at byte {place - 512:,} of")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_raises_anything_but_its_name(data):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", "ü.txt"):
            info = tarfile.TarInfo(name)
            info.size = 600
            tar.addfile(info, io.BytesIO(bytes(600)))
    content = bytearray(stream.getvalue()[:6000])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    with suppress(TarDamage):  # any other error fails the test
        found = list(tar_members(io.BytesIO(content), len(content)))
        assert all(offset + size <= len(content) for _, (offset, size) in found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file at byte 0 of 0"),
        (b"<!doctype html>" * 100, "a broken header at byte 0"),
        (b"<!doctype html>", "cut short inside a header"),
    ],
)
def test_a_file_that_is_no_tar_holds_nothing_and_says_why(tmp_path, content, words):
    (tmp_path / "0.tar").write_bytes(content)
    index = index_of(str(tmp_path / "0.tar"))
    assert len(index) == 0
    assert index.damage.startswith(words)


def test_a_missing_tar_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"1.tar: cannot be read .* check the path"):
        index_of(str(tmp_path / "1.tar"))


def test_a_tar_that_changed_while_it_was_read_costs_the_sample(tmp_path):
    path = write_tar(tmp_path / "0.tar", caption_members(1, 2))
    index = index_of(str(path))
    with open(path, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(SampleError, match=r"0.tar at byte .*: the shard changed since it was indexed; start again"):
        index.member(index[1].image).read()
    gone = index_of(str(write_tar(tmp_path / "1.tar", caption_members(1))))
    os.unlink(tmp_path / "1.tar")
    with pytest.raises(SampleError, match="No such file or directory; put the shard back"):
        gone.member(gone[0].image).read()


def test_members_of_a_sample_may_be_anywhere_in_the_tar(tmp_path):
    members = sorted(caption_members(3, 1, 2), key=lambda member: member[0].partition(".")[2])
    index = index_of(str(write_tar(tmp_path / "0.tar", members)))
    assert keys(index) == ["000000003", "000000001", "000000002"]
    assert [index.member(entry.image).read() for entry in entries(index)] == [encoded(n) for n in (3, 1, 2)]
    assert [index.member(entry.text).read() for entry in entries(index)] == [b"image 3", b"image 1", b"image 2"]
    assert index.left_out == {}


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_in_a_tar_are_the_files_that_they_name(tmp_path, kind, format):
    folder = "a" if format == tarfile.USTAR_FORMAT else "a" * 120
    path = write_tar(tmp_path / "0.tar", [(f"{folder}/1.jpg", encoded(1)), (f"{folder}/1.txt", "one")], format)
    with tarfile.open(path, "a", format=format) as tar:
        for name, target in (("2.jpg", "1.jpg"), ("3.jpg", "2.jpg"), ("4.jpg", "nowhere.jpg")):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.type = kind
            info.linkname = target if kind == tarfile.SYMTYPE else f"{folder}/{target}"
            tar.addfile(info)
        for number in (2, 3, 4):
            info = tarfile.TarInfo(f"{folder}/{number}.txt")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"two"))
    index = index_of(str(path))
    assert keys(index) == [f"{folder}/{number}" for number in (1, 2, 3)]
    assert [index.member(entry.image).read() for entry in entries(index)] == [encoded(1)] * 3
    assert index.left_out == {"a link to what is not in the tar": 1, "no image": 1}


def test_names_that_are_cut_at_a_dot_are_named_with_the_reason(tmp_path):
    members = [("photo.v1.jpg", encoded(1)), ("photo.v1.txt", "one"), ("photo.v2.jpg", encoded(2))]
    index = index_of(str(write_tar(tmp_path / "0.tar", members)))
    assert len(index) == 0
    assert index.named == (
        "photo: no image, as names are cut at the first dot: 3 members, such as photo.v1.jpg; rename them",
    )


def test_a_compressed_tar_is_named_as_such(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w:gz") as tar:
        tar.add(__file__, "a.txt")
    assert index_of(str(tmp_path / "0.tar")).damage == "is compressed (gzip); unpack it first"


def test_every_image_that_a_folder_reads_is_read_in_a_tar(tmp_path):
    members = [(suffix[1:] + ending, b"x") for suffix in IMAGE_SUFFIXES for ending in (suffix, ".txt")]
    assert len(index_of(str(write_tar(tmp_path / "0.tar", members)))) == len(IMAGE_SUFFIXES)
