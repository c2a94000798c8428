"""SBU and Conceptual Captions: rows meet the images that were downloaded; dead links are counted, never fatal."""

import json
import os
import pickle
import re
import resource
import sys

import pyarrow as pa
import pytest
from PIL import Image

import corpora
from evle.data.corpora import web_captions
from evle.data.corpora.web_captions import conceptual_captions, sbu
from evle.errors import ConfigError, DataError
from evle.run.stages import train
from micro import THINGS, micro_run


def test_sbu_s_images_are_known_by_their_links(tmp_path):
    samples = sbu(corpora.sbu(tmp_path), images=tmp_path / "images")
    assert len(samples) == 10
    assert samples[3].key == "sbu-captions-all.json/4"
    assert samples[3].captions == (f"{corpora.colour_of(4)} {THINGS[4]} in my garden",)
    assert samples[3].image == str(tmp_path / "images/1000092799_b0f291553e.jpg")
    assert pickle.loads(pickle.dumps(samples))[9] == samples[9]


def test_dead_links_are_counted_and_the_first_are_named(tmp_path, monkeypatch):
    file = corpora.sbu(tmp_path) / "sbu-captions-all.json"
    samples = sbu(tmp_path)
    assert samples.skipped == [f"{file}: row {row}: no image was downloaded" for row in (3, 7)]
    assert samples.describe()["rows left out: no image was downloaded"] == 2
    monkeypatch.setattr("evle.data.corpora.web_captions.NAMED", 1)
    assert sbu(tmp_path).skipped[1] == f"{file}: 1 more rows: no image was downloaded"
    assert sbu(tmp_path).describe()["rows left out"] == 2


def test_img2dataset_s_images_are_known_by_the_numbers_of_rows(tmp_path):
    samples = conceptual_captions(corpora.cc(tmp_path), images=tmp_path / "images")
    assert len(samples) == 8
    assert samples[2].key == "Train_GCC-training.tsv/3"
    assert samples[2].image == str(tmp_path / "images/00000/000000003.jpg")
    assert samples[2].captions == (f"a {corpora.colour_of(3)} {THINGS[3]} on a wall",)
    for names in ("number", "folders-of-10000"):
        assert list(conceptual_captions(tmp_path, images=tmp_path / "images", names=names)) == list(samples)


@pytest.mark.parametrize("columns", [None, ["url", "caption"]])
@pytest.mark.parametrize("header", ["", "url\tcaption\n"])
def test_the_columns_are_seen_or_said_and_a_header_is_no_row(tmp_path, columns, header):
    folder = corpora.cc(tmp_path)
    usual = conceptual_captions(folder, images=folder / "images")
    lines = (folder / "Train_GCC-training.tsv").read_text().splitlines()
    turned = ["\t".join(line.split("\t")[::-1]) for line in lines]
    (folder / "cc12m.tsv").write_text(header + "\n".join(turned) + "\n")
    samples = conceptual_captions(folder / "cc12m.tsv", images=folder / "images", columns=columns)
    assert [(each.image, each.captions) for each in samples] == [(each.image, each.captions) for each in usual]


@pytest.mark.parametrize(
    "lines", [["a cup\t{}0.jpg", "a\tred\tcup\t{}1.jpg"], ["{}0.jpg\ta cup", "{}1.jpg\ta red cup"]]
)
def test_a_byte_order_mark_tabs_in_captions_and_quotes_change_no_row(tmp_path, lines):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number:09}.jpg")
    link, quoted = "https://example.org/", '"'
    rows = [line.format(link) for line in lines]
    rows.append(rows[0].replace("0.jpg", "2.jpg").replace("cup", f"{quoted}cup"))
    (tmp_path / "cc.tsv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    samples = conceptual_captions(tmp_path)
    found = [(sample.key, os.path.basename(sample.image), sample.captions) for sample in samples]
    captions = ("a cup", "a red cup", 'a "cup')
    assert found == [(f"cc.tsv/{row}", f"{row:09}.jpg", (text,)) for row, text in enumerate(captions)]


def test_broken_rows_are_left_out_and_named(tmp_path):
    folder = corpora.cc(tmp_path)
    file = folder / "Train_GCC-training.tsv"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1], lines[3] = b"no tab\n", b"\thttps://example.org/3.jpg\n"
    lines[4] = b"caf\xe9\thttps://example.org/4.jpg\n"
    file.write_bytes(b"".join(lines))
    samples = conceptual_captions(folder, images=folder / "images")
    assert samples.skipped[:3] == [f"{file}: row {row}: no caption, no link, or not UTF-8 text" for row in (1, 3, 4)]
    assert [sample.key.rpartition("/")[2] for sample in samples] == ["0", "6", "7", "8", "9"]


def test_one_name_of_several_links_is_nobody_s_image(tmp_path):
    lines = [f"caption {i}\thttps://{i}.example.org/{name}.jpg\n" for i, name in enumerate(["a", "b", "a", "c"])]
    lines.append("caption 4\thttps://1.example.org/b.jpg\n")  # the same link twice is one image with two captions
    (tmp_path / "t.tsv").write_text("".join(lines))
    for name in ("a.jpg", "b.jpg", "c.jpg", "more/c.png"):
        corpora.save(tmp_path / "images" / name, "red")
    samples = conceptual_captions(tmp_path, images=tmp_path / "images")
    assert [sample.captions[0] for sample in samples] == ["caption 1", "caption 4"]
    assert samples.describe()["rows left out: its image's name belongs to several links or files"] == 3


def test_images_of_another_table_are_not_taken_for_this_one_s(tmp_path):
    folder = corpora.cc(tmp_path)
    file = folder / "Train_GCC-training.tsv"
    file.write_text("a new first row\thttps://example.org/new.jpg\n" + file.read_text())
    with pytest.raises(DataError) as found:
        conceptual_captions(folder, images=folder / "images")
    assert re.search(r"00000000\d.json: its caption is", str(found.value))
    assert "the images were downloaded from another table" in str(found.value)


def test_val_is_held_out_by_a_share_of_the_rows(tmp_path):
    corpora.sbu(tmp_path)
    keys = [{sample.key for sample in sbu(tmp_path, split=split, val_share=0.3)} for split in ("train", "val")]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 10
    assert 1 <= len(keys[1]) <= 5


def broken_lengths(folder):
    tree = json.loads((folder / "sbu-captions-all.json").read_text())
    tree["captions"].pop()
    corpora.write_json(folder / "sbu-captions-all.json", tree)


def cut(folder):
    file = folder / "sbu-captions-all.json"
    file.write_text(file.read_text()[:300])


def other_names(folder):
    for i, picture in enumerate(sorted((folder / "images").iterdir())):
        picture.rename(folder / "images" / f"image{i}.jpg")


def shards_only(folder):
    for picture in (folder / "images").iterdir():
        picture.unlink()
    (folder / "images" / "00000.tar").write_bytes(b"")


BROKEN = {
    "a list is shorter": (broken_lengths, {}, "12 image_urls but 11 captions; download the official file again"),
    "cut short": (cut, {}, "cut short in 'image_urls', element 4"),
    "no folder": (
        None,
        {"images": "gone"},
        "gone: no such folder; put the images that sbu-captions-all.json links to",
    ),
    "other names": (
        other_names,
        {},
        "none of 10 images (such as images/image0.jpg) belongs to a row of",
    ),
    "a wrong rule": (None, {"names": "number"}, "by the layout number; set names to one of number, number-from-1"),
    "no rule": (
        None,
        {"names": "link"},
        "names='link': choose one of: folders-of-N, number, number-from-1, url",
    ),
    "shards": (shards_only, {}, "no images there; 00000.tar is a shard: read it with the source 'shards'"),
    "a split that does not exist": (None, {"split": "test"}, "sbu has no split 'test'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_one_line_that_names_it(case, tmp_path, monkeypatch):
    spoil, options, message = BROKEN[case]
    corpora.sbu(tmp_path)
    monkeypatch.chdir(tmp_path)
    if spoil is not None:
        spoil(tmp_path)
    with pytest.raises((ConfigError, DataError)) as found:
        sbu(tmp_path, **options)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_a_table_without_links_and_a_folder_without_a_table_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.tsv there; put the table of captions and links there"):
        conceptual_captions(tmp_path)
    (tmp_path / "t.tsv").write_text("a\tb\n")
    with pytest.raises(DataError, match=r"t\.tsv: no link in its first rows"):
        conceptual_captions(tmp_path)
    with pytest.raises(ConfigError, match=r"columns=\['url'\] must be \[caption, url\] or \[url, caption\]"):
        conceptual_captions(tmp_path, columns=["url"])


@pytest.mark.slow
def test_a_million_rows_take_a_small_part_of_their_file_in_memory(tmp_path):
    """A table of 130 MB whose rows all have an image; the names of the images are given, no file is read."""
    count = 1_000_000
    words = "a man riding a wave on top of a surfboard in the ocean with two dogs"
    with open(tmp_path / "cc3m.tsv", "w") as file:
        for i in range(count):
            file.write(f"{words} {i}\thttps://images.example.org/some/longer/path/photo_{i}.jpg?w=600\n")
    names = pa.array((f"{i // 10000:05}/{i:09}.jpg" for i in range(count)), pa.large_string())
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_captions, "images_below", lambda root: (names, []))
        samples = conceptual_captions(tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    assert len(samples) == count
    assert samples[-1].captions == (f"{words} {count - 1}",)
    assert samples[500_000].image.endswith("00050/000500000.jpg")
    assert len(pickle.dumps(samples)) < 60_000_000
    assert grown < 300_000_000


def test_a_report_counts_every_dead_link(tmp_path, monkeypatch):
    """Two links are dead, one of them named; train and val are of one file."""
    monkeypatch.setattr("evle.data.corpora.web_captions.NAMED", 1)
    path = str(corpora.sbu(tmp_path / "sbu"))
    source = {"source": "sbu", "path": path, "val_share": 0.5}
    data = {
        "train": [source, {"source": "cc", "path": str(corpora.cc(tmp_path / "cc"))}],
        "val": {**source, "split": "val"},
    }
    for place in (0, 1, 3):
        (tmp_path / "cc" / "images" / "00000" / f"{place:09}.jpg").unlink()
    report = train(micro_run(tmp_path / "run", "retrieval", {"data": data, "train": {"steps": 2, "batch_size": 4}}))
    assert any(line.startswith("left out, as they could not be used: 7 rows or samples: ") for line in report.summary)
    (skipped,) = (table for table in report.tables if table.title == "Skipped samples: 7")
    assert [row[0].rpartition("/")[2] for row in skipped.rows] == [
        "sbu-captions-all.json: row 3: no image was downloaded",
        "sbu-captions-all.json: 1 more rows: no image was downloaded",
        "Train_GCC-training.tsv: row 0: no image was downloaded",
        "Train_GCC-training.tsv: 4 more rows: no image was downloaded",
    ]


@pytest.mark.parametrize("nothing", [None, "nan", " NULL", "None", ""])
def test_a_null_in_sbu_is_a_row_without_caption(nothing, tmp_path):
    file = corpora.sbu(tmp_path) / "sbu-captions-all.json"
    tree = json.loads(file.read_text())
    tree["captions"][0] = nothing
    file.write_text(json.dumps(tree))
    assert sbu(tmp_path).describe()["rows left out: no caption, no link, or not UTF-8 text"] == 1


def test_a_nan_in_conceptual_captions_is_a_row_without_caption(tmp_path):
    file = corpora.cc(tmp_path) / "Train_GCC-training.tsv"
    before = conceptual_captions(tmp_path)
    lines = file.read_text().splitlines()
    lines[1] = "nan\t" + lines[1].partition("\t")[2]
    file.write_text("\n".join(lines))
    after = conceptual_captions(tmp_path)
    assert len(after) == len(before) - 1
    assert after.describe()["rows left out: no caption, no link, or not UTF-8 text"] == 1


def test_a_blank_line_between_rows_is_refused(tmp_path):
    table = tmp_path / "cc.tsv"
    lines = [f"a dog {number}\thttp://x.org/{number}.jpg\n" for number in range(3)]
    for number in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.jpg")
    table.write_text("".join(lines) + "\n\n")
    assert len(conceptual_captions(table, images=tmp_path)) == 3
    table.write_text(lines[0] + "\n" + "".join(lines[1:]))
    with pytest.raises(DataError, match="row 1 is a blank line, which programs that download images do not count"):
        conceptual_captions(table, images=tmp_path)


def test_captions_that_pandas_put_in_quotes_are_read_without_them(tmp_path):
    corpora.save(tmp_path / "0.jpg", "red")
    table = tmp_path / "a.tsv"
    table.write_text('"a ""big"" dog"\thttp://x.org/0.jpg\n"a dog"\thttp://x.org/1.jpg\n')
    assert conceptual_captions(table, images=tmp_path, names="number")[0].captions == ('a "big" dog',)
    table.write_text('"a dog\non grass"\thttp://x.org/0.jpg\n')
    with pytest.raises(DataError, match=r"a\.tsv:1: a quote opens here, and the row ends on another line"):
        conceptual_captions(table, images=tmp_path, names="number")


def test_a_table_in_another_encoding_is_named(tmp_path):
    corpora.save(tmp_path / "0.jpg", "red")
    (tmp_path / "a.tsv").write_text("a dog\thttp://x.org/0.jpg\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"a\.tsv: is UTF-16 text; save it as UTF-8"):
        conceptual_captions(tmp_path)


@pytest.mark.parametrize("caption", [["a", "dog"], {"text": "a dog"}])
def test_captions_of_sbu_that_are_no_texts_are_refused(tmp_path, caption):
    corpora.save(tmp_path / "0.jpg", "red")
    tree = {"image_urls": ["http://x.org/0.jpg"], "captions": [caption]}
    corpora.write_json(tmp_path / "sbu-captions-all.json", tree)
    with pytest.raises(DataError, match=r"captions 0: .* is not a text"):
        sbu(tmp_path)


TABLES = {
    "header-url-status-caption": ("url\tstatus\tcaption\n{0}\tsuccess\ta dog\n{1}\tsuccess\ta cat\n", None, ""),
    "header-caption-score-url": ("caption\tscore\turl\na dog\t1\t{0}\na cat\t2\t{1}\n", None, ""),
    "header-id-caption-url": ("ID\t\"Caption\"\tURL\n7\ta dog\t{0}\n8\ta cat\t{1}\n", None, ""),
    "header-title": ("url\ttitle\n{0}\ta dog\n{1}\ta cat\n", None, ""),
    "more-after-the-link": ("a dog\t{0}\t0.9\na cat\t{1}\t0.8\n", None, ""),
    "empty-cells": ("{0}\ta dog\t\n{1}\ta cat\t \n", None, ""),
    "header-without-caption": ("url\tid\twords\n{0}\t1\ta dog\n{1}\t1\ta cat\n", None, "none of them is a caption"),
    "url-id-caption": ("{0}\t17\ta dog\n{1}\t18\ta cat\n", None, r"t\.tsv:1: 3 columns instead of 2"),
    "index-of-pandas": ("\tcaption\turl\n0\ta dog\t{0}\n1\ta cat\t{1}\n", None, ""),
    "more-than-the-header": ("url\tcaption\n{0}\ta dog\t3\n{1}\ta cat\t4\n", None, r"t\.tsv:2: 3 columns instead"),
    "columns-and-a-wider-header": (
        "id\tcaption\turl\n7\ta dog\t{0}\n8\ta cat\t{1}\n", ["caption", "url"], "names id, caption, url; remove",
    ),
    "columns-and-three": ("7\ta dog\t{0}\n8\ta cat\t{1}\n", ["caption", "url"], "in column 3, not 2; add"),
    "columns-turned": ("{0}\ta dog\n{1}\ta cat\n", ["caption", "url"], "in column 1, not 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_the_caption_is_read_from_its_own_column_or_refused(case, tmp_path):
    text, columns, message = TABLES[case]
    for number in range(2):
        corpora.save(tmp_path / "images" / f"{number}.jpg", "red")
    (tmp_path / "t.tsv").write_text(text.format("http://x.org/0.jpg", "http://x.org/1.jpg"))
    if message:
        with pytest.raises((ConfigError, DataError), match=message):
            conceptual_captions(tmp_path, images=tmp_path / "images", columns=columns)
    else:
        samples = conceptual_captions(tmp_path, images=tmp_path / "images", columns=columns)
        assert [sample.captions for sample in samples] == [("a dog",), ("a cat",)]


def test_a_row_with_more_columns_than_the_others_is_left_out(tmp_path):
    corpora.save(tmp_path / "0.jpg", "red")
    (tmp_path / "t.tsv").write_text("http://x.org/0.jpg\ta dog\nhttp://x.org/1.jpg\ta\tcat\n")
    samples = conceptual_captions(tmp_path)
    assert [sample.captions for sample in samples] == [("a dog",)]
    reason = "no caption, no link, or not UTF-8 text"
    assert samples.skipped == [f"{tmp_path}/t.tsv: row 1: {reason}"]


@pytest.mark.parametrize("target", [".", "a", "latest"])
def test_links_to_folders_are_not_followed(target, tmp_path):
    """A link to its own folder was followed until the system refused it."""
    for number in range(2):
        corpora.save(tmp_path / "a" / f"{number}.jpg", "red")
    (tmp_path / "latest").symlink_to(target)
    (tmp_path / "t.tsv").write_text("a dog\thttp://x.org/0.jpg\na cat\thttp://x.org/1.jpg\n")
    samples = conceptual_captions(tmp_path)
    assert [sample.captions for sample in samples] == [("a dog",), ("a cat",)]
    note = f"{tmp_path}/latest: a link to a folder, which is not followed; move its images here"
    assert samples.skipped == ([] if target == "latest" else [note])
