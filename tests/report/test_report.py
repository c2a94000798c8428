"""The report: what is written, that it is safe, whole and the same every time."""

import base64
import io
import json
import math
import re
import warnings
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from evle.errors import DataError
from evle.report import (
    Cell,
    Curve,
    Gallery,
    GalleryRow,
    Interval,
    Intervals,
    Mark,
    Report,
    Table,
    flatten,
    format_column,
    image_uri,
    plain,
    read_galleries,
)
from evle.report.charts import intervals_svg


def a_report() -> Report:
    picture = Image.new("RGB", (600, 300), "teal")
    cells = [Cell(picture, "a <b>circle</b>", "good"), Cell(None, "words | only", "bad"), Cell(picture)]
    return Report(
        "Run <1>",
        summary=["2 images could not be read: <script>alert(1)</script>.png"],
        provenance={"seed": 0, "data": {"hash": "ab12", "splits": ["train", "val"]}},
        tables=[Table("By type", ["type", "n", "accuracy"], [["a|b", 1200, 0.5], ["c", None, math.nan]], "a note")],
        curves=[Curve("Loss", "step", "loss", {"train": [(1, 2.0), (2, math.inf), (3, 0.5)], "none": []})],
        galleries=[Gallery("Queries", [GalleryRow('"a query"', cells, "rank 1")]), Gallery("Empty", [])],
        scores={"accuracy": np.float32(61.25), "loss": float("nan"), "count": np.int64(7)},
    )


class Page(HTMLParser):
    """Collects tags and ids, and checks that tags close in the order they opened."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}
        self.ids += [value for name, value in attributes if name == "id"]
        if tag == "img":
            self.images.append(dict(attributes))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_is_files_of_numbers_images_and_the_page_is_returned(tmp_path):
    path = a_report().write(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "galleries.json",
        "report.html",
        "report.json",
        "report.md",
    ]


def test_the_same_report_is_written_byte_for_byte_the_same(tmp_path):
    first, second = a_report().write(tmp_path / "1").parent, a_report().write(tmp_path / "2").parent
    for name in ("report.html", "report.json", "report.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_json_has_every_number_and_null_for_what_is_not_finite(tmp_path):
    data = json.loads((a_report().write(tmp_path).parent / "report.json").read_text(encoding="utf-8"))
    assert data["scores"] == {"accuracy": 61.25, "loss": None, "count": 7}
    assert data["tables"][0]["rows"] == [["a|b", 1200, 0.5], ["c", None, None]]
    assert data["curves"][0]["series"]["train"] == [[1, 2.0], [2, None], [3, 0.5]]
    assert data["provenance"]["data"]["splits"] == ["train", "val"]


def test_the_page_is_well_formed_with_unique_ids_and_needs_no_network():
    page = a_report()
    page.curves.append(page.curves[0])
    text = page.html()
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)


def test_text_is_escaped_and_control_codes_are_replaced():
    text = Report("a & b\x00 \ud800", summary=["<img src=x onerror=alert(1)>"]).html()
    assert "<img" not in text
    assert "a &amp; b\ufffd \ufffd" in text
    text.encode("utf-8")


def test_every_image_has_an_alt_text_a_bounded_size_and_marks_have_words():
    text = a_report().html()
    images = Page(text).images
    assert len(images) == 2
    assert all(image["alt"] for image in images)
    assert {(image["width"], image["height"]) for image in images} == {("384", "192")}
    assert "✓" in text
    assert "right: " in text
    assert "wrong: " in text


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_images_of_every_mode_are_embedded_and_left_alone(mode):
    image = Image.new(mode, (768, 6))
    uri, width, height = image_uri(image)
    stored = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert stored.size == (width, height) == (384, 3)
    assert (image.mode, image.size) == (mode, (768, 6))


def test_a_cell_holds_its_image_as_small_as_the_page_shows_it():
    picture = Image.new("RGB", (3000, 2000), "red")
    assert Cell(picture).image.size == (384, 256)
    assert picture.size == (3000, 2000)


def test_fractions_of_a_column_share_their_decimals_and_integers_keep_theirs():
    assert format_column([61.25, 7.0, 20, None, math.nan]) == ["61.25", "7.00", "20.00", "–", "nan"]
    assert format_column([12000, 3, True]) == ["12,000", "3", "yes"]
    assert format_column([0.5, 0.25]) == ["0.5000", "0.2500"]
    assert format_column([3e-5, 1.0]) == ["3e-05", "1"]
    assert format_column([math.inf, -math.inf, "x"]) == ["∞", "−∞", "x"]


def test_markdown_tables_hold_their_shape_whatever_the_text():
    lines = [line for line in a_report().markdown().splitlines() if line.startswith("|") and "a\\|b" in line]
    assert lines == ["| a\\|b | 1,200 | 0.5000 |"]
    assert "| ---: |" in a_report().markdown()


def test_scores_of_several_runs_are_one_table():
    report = Report("x", scores={"scratch": {"vqa": 41.0}, "pre-trained": {"vqa": 55.0, "r@1": 30.5}})
    table = report.all_tables()[0]
    assert table.columns == ["score", "scratch", "pre-trained"]
    assert table.rows == [["vqa", 41.0, 55.0], ["r@1", None, 30.5]]


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(AssertionError, match="1 cells under 2 columns"):
        Report("x", tables=[Table("t", ["a", "b"], [[1]])]).html()


def test_long_curves_are_drawn_with_few_points_and_kept_whole_in_json():
    points = [(float(i), 1.0) for i in range(5000)]
    report = Report("x", curves=[Curve("c", "step", "$loss$ _{x", {"_hidden": points})])
    assert len(report.html()) < 60_000
    assert "mean of up to 13 neighbours" in report.html()
    assert len(report.to_json()["curves"][0]["series"]["_hidden"]) == 5000


def test_curves_use_the_pages_colours():
    drawing = a_report().html().split('role="img"')[1]
    assert "var(--series-0)" in drawing
    assert "#fe01" not in drawing
    assert "#fd01" not in drawing


def test_intervals_are_drawn_and_said_in_words_with_what_each_mark_means():
    rows = [
        Interval("one is better " * 8, 5.0, 2.0, 8.0, 0.0, "good"),
        Interval("two <is> better", -1.0, -2.0, -0.5, 0.0, "bad"),
        Interval("three is better", 1.0, -1.0, 3.0, 0.0),
    ]
    marks: dict[Mark, str] = {"good": "confirmed", "bad": "refuted", "": "undecided"}
    report = Report("Claims", intervals=[Intervals("At a glance", "points", rows, marks, "A note.")])
    page = report.html()
    assert "two &lt;is&gt; better: -1, from -2 to -0.5, refuted; three is better: 1, from -1 to 3, undecided" in page
    assert [page.count(f"</svg> {word}</li>") for word in marks.values()] == [1, 1, 1]
    drawing = page[page.index('role="img"') :]
    drawing = drawing[: drawing.index("</svg>")]
    assert drawing.count("<text") > 5  # the long name is on two lines
    assert "var(--good)" in drawing
    assert "#fe01" not in drawing
    assert report.to_json()["intervals"][0]["rows"][1]["low"] == -2.0
    assert "nothing to show" in Report("None", intervals=[Intervals("At a glance", "points", [], marks)]).html()


@pytest.mark.parametrize(
    "name", ["W" * 200, "\u4e2d\u6587" * 60, "font: 12px <b>; font-family: x #fe0100 \x01 end", "", "a " * 300]
)
def test_the_name_of_an_interval_does_not_disturb_its_drawing(name):
    chart = Intervals("At a glance", "points", [Interval(name, 5.0, 2.0, 8.0, 0.0)], {"": "undecided"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a font without these letters, or of no room for the axes
        drawing = intervals_svg(chart, "c")
    text = "".join(ElementTree.fromstring(drawing).itertext())
    assert "".join(name.replace("\x01", "\ufffd").split()) in "".join(text.split())


def test_an_empty_report_is_still_a_page(tmp_path):
    assert "<h1" in Report("nothing").write(tmp_path).read_text(encoding="utf-8")


def test_nested_facts_become_dotted_lines():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [], "e": (1, 2.5)}) == [
        ("a.b", "1"),
        ("a.c", "{}"),
        ("d", "none"),
        ("e", "1, 2.5"),
    ]
    assert plain({1: {3, 2}, "x": object}) == {"1": [2, 3], "x": "<class 'object'>"}


def test_galleries_pass_into_another_report(tmp_path):
    picture = Image.new("RGB", (40, 30), "red")
    gallery = Gallery(
        "Queries", [GalleryRow("a query", [Cell(picture, "found", "good"), Cell(None, "text")], "rank 1")]
    )
    Report("One", galleries=[gallery]).write(tmp_path)
    (read,) = read_galleries(tmp_path)
    assert (read.title, read.rows[0].heading, read.rows[0].note) == ("Queries", "a query", "rank 1")
    shown, words = read.rows[0].cells
    assert (shown.text, shown.mark, words.text, words.image) == ("found", "good", "text", None)
    assert shown.image.size == picture.size
    assert max(abs(a - b) for a, b in zip(shown.image.convert("RGB").getpixel((5, 5)), (255, 0, 0))) < 8


def test_a_report_without_galleries_leaves_none_to_read(tmp_path):
    Report("One").write(tmp_path)
    assert read_galleries(tmp_path) == []


def test_steps_are_whole_numbers_on_the_axis():
    page = Report("x", curves=[Curve("Loss", "step", "loss", {"train": [(1, 8.0), (2, 4.0)]})]).html()
    assert ">1</text>" in page
    assert ">1.2</text>" not in page


LIVE = [
    "![t](http://evil.example/track.png)",
    "[a](javascript:x)",
    "<img src=x>",
    "http://evil.example",
    "www.evil.example",
]


@pytest.mark.parametrize("text", LIVE)
def test_no_text_from_data_is_a_link_or_an_image_in_markdown(text):
    report = Report(text, [text], {text: text}, [Table(text, [text], [[text]], text)], scores={text: 1.0})
    written = report.markdown()
    unescaped = re.sub(r"\\.", "", written)  # what a backslash precedes is plain text
    assert not re.search(r"[\[\]<>!]|://|www\.", unescaped)
    assert "\x1b" not in Report("a\x1b[31m").markdown()


def test_text_tries_everything_to_leave_its_place_on_the_page():
    attack = """"><script>alert(1)</script>{{ 7*7 }}{% raw %}' onload='x' </style></title>"""
    picture = Image.new("RGB", (4, 4))
    text = Report(
        attack,
        [attack],
        {attack: attack},
        [Table(attack, [attack], [[attack]], attack), Table("log", [attack], [[attack]], folded=True)],
        [Curve(attack, attack, attack, {attack: [(0, 1.0)]}, attack)],
        [Gallery(attack, [GalleryRow(attack, [Cell(picture, attack, "bad")], attack)], attack)],
        {attack: 1.0},
        [(attack, attack)],
        [Intervals(attack, attack, [Interval(attack, 1.0, 0.0, 2.0, 0.0, "good")], {"good": attack}, attack)],
    ).html()
    parsed = Page(text)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert "49" not in re.sub(r"<svg.*?</svg>|<style.*?</style>|data:[^\"]*", "", text, flags=re.DOTALL)
    assert "onload" not in parsed.attributes


def test_images_open_by_a_click_and_close_again():
    text = a_report().html()
    parsed = Page(text)
    for image in re.findall(r'<a class="open" href="#([^"]+)"', text):
        assert image in parsed.ids
    for row in re.findall(r'<a class="close" href="#([^"]+)"', text):
        assert row in parsed.ids


def test_a_folded_table_is_at_the_end_and_closed():
    text = Report("x", tables=[Table("Log", ["step"], [[1]], folded=True), Table("Open", ["a"], [[2]])]).html()
    assert text.index(">Open</h2>") < text.index(">Log</h2>")
    assert "<details><summary>1 line</summary>" in text


def test_pages_are_linked_by_relative_paths():
    text = Report("x", links=[("stage <1>", "a b/report.html")]).html()
    assert '<a href="a%20b/report.html">stage &lt;1&gt;</a>' in text


@pytest.mark.parametrize("damage", ["{}", "[" * 5000, "[5]", '[{"rows": [{"cells": [{}]}]}]'])
def test_damaged_galleries_are_one_line(tmp_path, damage):
    (tmp_path / "galleries.json").write_text(damage)
    with pytest.raises(DataError, match=r"galleries.json: "):
        read_galleries(tmp_path)
