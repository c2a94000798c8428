"""Downloaded images meet their own rows in every known layout, or the folder is refused; never the row beside."""

import json
import os

import pytest

import corpora
from evle.data.corpora.web_captions import conceptual_captions, sbu
from evle.errors import ConfigError, DataError

ROWS = 3020


def table(folder, rows=ROWS, link="https://example.org/{row}/photo.jpg"):
    lines = (f"caption of row {row}\t{link.format(row=row)}\n" for row in range(rows))
    (folder / "cc.tsv").write_text("".join(lines))


def images(folder, *names):
    for name in names:
        corpora.save(folder / "images" / name, "red")


def note(folder, name, **fields):
    (folder / "images" / name).with_suffix(".json").write_text(json.dumps(fields))


def rows_of(folder, **options):
    """The row that each image's caption is of, by the image's name."""
    samples = conceptual_captions(folder, images=folder / "images", **options)
    return {os.path.relpath(each.image, folder / "images"): int(each.captions[0].split()[-1]) for each in samples}


SHARDS = ("00000/000000000.jpg", "00000/000004999.jpg", "00001/000010000.jpg", "00001/000010007.jpg")
KNOWN = {
    "numbers from 0": (6, ["0.jpg", "5.jpg"], {"0.jpg": 0, "5.jpg": 5}),
    "numbers from 1": (6, ["1.jpg", "6.jpg"], {"1.jpg": 0, "6.jpg": 5}),
    "padded numbers from 1": (6, ["001.png", "002.png", "006.png"], {"001.png": 0, "002.png": 1, "006.png": 5}),
    "SBU's archive": (
        ROWS,
        ["0000/000.jpg", "0000/999.jpg", "0001/000.jpg", "0003/019.jpg"],
        {"0000/000.jpg": 0, "0000/999.jpg": 999, "0001/000.jpg": 1000, "0003/019.jpg": 3019},
    ),
    "a part of SBU's archive": (ROWS, ["0001/000.jpg", "0001/003.jpg"], {"0001/000.jpg": 1000, "0001/003.jpg": 1003}),
    "img2dataset's first shard": (
        ROWS,
        ["00000/000000001.jpg", "00000/000000002.jpg"],
        {"00000/000000001.jpg": 1, "00000/000000002.jpg": 2},
    ),
    "img2dataset's full shards of 1000": (
        ROWS,
        ["00000/00000999.jpg", "00001/00001000.jpg"],
        {"00000/00000999.jpg": 999, "00001/00001000.jpg": 1000},
    ),
    "whole numbers in folders by thousand": (
        ROWS,
        ["0/0.jpg", "0/17.jpg", "1/1000.jpg", "2/2999.jpg"],
        {"0/0.jpg": 0, "0/17.jpg": 17, "1/1000.jpg": 1000, "2/2999.jpg": 2999},
    ),
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_layout_is_recognised_by_the_names_alone(case, tmp_path):
    rows, names, expected = KNOWN[case]
    table(tmp_path, rows)
    images(tmp_path, *names)
    assert rows_of(tmp_path) == expected


AMBIGUOUS = {
    "neither 0 nor the number of rows": (6, ["1.jpg", "2.jpg"], "1.jpg could be row 1 (number) or row 0 (number-fr"),
    "both 0 and the number of rows": (6, ["0.jpg", "6.jpg"], "(such as 0.jpg) do not fit the 6 rows of"),
    "a number beyond the rows": (6, ["0.jpg", "20230101.jpg"], "do not fit the 6 rows of"),
    "shards of an unknown size": (20_000, [*SHARDS], "00000/000000000.jpg could be row 0 (folders-of-10000)"),
    "folders of an unknown size": (ROWS, ["0/0.jpg", "0/1.jpg", "1/0.jpg", "1/1.jpg"], "could be row"),
    "links that are other numbers": (6, ["1.jpg", "2.jpg"], "could be row 1 (number)"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_the_names_do_not_tell_is_refused_with_the_choices(case, tmp_path):
    rows, names, message = AMBIGUOUS[case]
    table(tmp_path, rows, "https://example.org/{row}.jpg" if "links" in case else "https://example.org/{row}/x.jpg")
    images(tmp_path, *names)
    with pytest.raises(DataError) as refused:
        rows_of(tmp_path)
    assert message in str(refused.value)
    assert "number-from-1, folders-of-N (such as folders-of-1000) or url" in str(refused.value)


def test_an_option_decides_what_the_names_do_not_tell(tmp_path):
    table(tmp_path, 20_000)
    images(tmp_path, *SHARDS)
    assert rows_of(tmp_path, names="folders-of-5000")["00001/000010007.jpg"] == 5007
    assert rows_of(tmp_path, names="folders-of-10000")["00001/000010007.jpg"] == 10_007
    images(tmp_path / "flat", "7.jpg")
    table(tmp_path / "flat", 20)
    assert rows_of(tmp_path / "flat", names="number") == {"7.jpg": 7}
    assert rows_of(tmp_path / "flat", names="number-from-1") == {"7.jpg": 6}
    for wrong in ("folders-of-0", "folders"):
        with pytest.raises(ConfigError, match="such as folders-of-1000"):
            rows_of(tmp_path / "flat", names=wrong)


@pytest.mark.parametrize("size", [5000, 7777, 10_000])
@pytest.mark.parametrize("kind", ["url", "caption", "text"])
def test_shards_of_any_size_are_known_by_what_is_written_beside_an_image(size, kind, tmp_path):
    table(tmp_path, 20_000)
    images(tmp_path, *SHARDS)
    row = size + 7
    if kind == "text":
        (tmp_path / "images/00001/000010007.txt").write_text(f"caption of  row {row}\n")
    else:
        text = f"https://example.org/{row}/photo.jpg" if kind == "url" else f"caption of row {row}"
        note(tmp_path, "00001/000010007.jpg", **{kind: text})
    expected = dict(zip(SHARDS, (0, 4999, size, row)))
    assert rows_of(tmp_path) == expected


def test_shards_of_any_size_are_known_by_img2dataset_s_statistics(tmp_path):
    table(tmp_path, 20_000)
    images(tmp_path, *SHARDS)
    for shard, count in (("00000", 5000), ("00001", 5000)):
        (tmp_path / "images" / f"{shard}_stats.json").write_text(json.dumps({"count": count, "successes": 2}))
    assert rows_of(tmp_path)["00001/000010007.jpg"] == 5007


@pytest.mark.parametrize(("row", "expected"), [(2, {"2.jpg": 2, "3.jpg": 3}), (1, {"2.jpg": 1, "3.jpg": 2})])
def test_a_note_decides_where_numbers_begin(row, expected, tmp_path):
    table(tmp_path, 10)
    images(tmp_path, "2.jpg", "3.jpg")
    note(tmp_path, "2.jpg", caption=f"caption of row {row}")
    assert rows_of(tmp_path) == expected


@pytest.mark.parametrize("names", [None, "number"])
def test_notes_of_another_table_are_refused_whatever_the_option(names, tmp_path):
    table(tmp_path, 10)
    images(tmp_path, "0.jpg", "3.jpg")
    note(tmp_path, "3.jpg", url="https://example.org/elsewhere.jpg")
    with pytest.raises(DataError, match=r"3\.json: its link is 'https://example.org/elsewhere.jpg', but row 3"):
        rows_of(tmp_path, names=names)


def test_names_of_links_that_are_numbers_are_known_by_their_links(tmp_path):
    table(tmp_path, 6, "https://example.org/98{row}.jpg")
    images(tmp_path, "982.jpg", "985.jpg")
    assert rows_of(tmp_path) == {"982.jpg": 2, "985.jpg": 5}


def test_sbu_s_own_archive_is_read(tmp_path):
    count = 3020
    tree = {
        "image_urls": [f"http://static.flickr.com/{row}/{4_000_000 + row}_a.jpg" for row in range(count)],
        "captions": [f"caption of row {row}" for row in range(count)],
    }
    corpora.write_json(tmp_path / "sbu-captions-all.json", tree)
    images(tmp_path, "0001/000.jpg", "0001/001.jpg")
    samples = sbu(tmp_path, images=tmp_path / "images")
    assert [sample.captions[0] for sample in samples] == ["caption of row 1000", "caption of row 1001"]
