"""Checking a source: every sample is made, every image decoded once, and all that is wrong is counted and named."""

import pytest
from PIL import Image

import corpora
from evle.data.corpora.web_captions import sbu
from evle.data.samples import Box, CaptionSample
from evle.data.synthetic.scenes import scenes
from evle.errors import SampleError
from evle.inspection.sample_check import check_samples


@pytest.fixture
def pictures(tmp_path):
    """Four images: two with the same bytes, one cut short."""
    for name, colour, size in (("a", "red", 8), ("b", "blue", 8), ("same", "red", 8), ("cut", "red", 64)):
        Image.new("RGB", (size, size), colour).save(tmp_path / f"{name}.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    return tmp_path


def test_everything_is_counted_and_named(pictures):
    def path(name):
        return str(pictures / f"{name}.png")

    samples = [
        CaptionSample("a", path("a"), ("a dog", "собака"), boxes=(Box(0, 0, 4, 4, "dog"), Box(8, 0, 3, 3, "cat"))),
        CaptionSample("a again", path("a"), ("word " * 31,)),
        CaptionSample("b", path("b"), (" ",)),
        CaptionSample("b", path("same"), ("x",)),
        CaptionSample("cut", path("cut"), ("x",)),
        CaptionSample("gone", path("gone"), ("x",)),
    ]
    seen = []
    check = check_samples(samples, progress=lambda done, total: seen.append((done, total)))
    assert (check.samples, check.images, check.texts, check.words, check.boxes) == (6, 5, 6, 37, 2)
    assert check.sizes == {(8, 8): 3}
    assert check.not_latin == pytest.approx(1 / 6)
    assert check.empty.lines == ["b"]
    assert check.repeated.lines == ["b: appears 2 times"]
    assert [line.split(": ")[0] for line in check.long.lines] == ["a again"]
    assert check.duplicates.lines == ["b = a"]
    assert check.outside.lines == ["a: 'cat': 3 x 3 at (8, 0) of 8 x 8 pixels"]
    assert check.unreadable.count == 2
    assert "no such file" in check.unreadable.lines[1]
    assert not check.ok
    assert seen == [(i, 5) for i in range(1, 6)]
    text = "\n".join(check.lines(most=1))
    for words in (
        "6 samples, 5 different images, 6 texts",
        "unreadable images: 2",
        "... and 1 more",
        "16.7 % not in",
    ):
        assert words in text


def test_samples_that_cannot_be_made_do_not_stop_it(pictures):
    class Samples(list):
        def __getitem__(self, index):
            if index == 1:
                raise SampleError("sample 1 is damaged")
            return super().__getitem__(index)

    good = CaptionSample("a", str(pictures / "a.png"), ("x",))
    check = check_samples(Samples([good, good]))
    assert check.broken.lines == ["sample 1 is damaged"]
    assert not check.ok


def test_dead_links_are_told_and_are_no_fault(tmp_path):
    check = check_samples(sbu(corpora.sbu(tmp_path)))
    assert check.ok
    assert len(check.left_out) == 2
    assert check.lines()[-1] == "every sample can be used"
    assert "left out by the source: 2" in check.lines()


@pytest.mark.parametrize(
    ("task", "images", "texts"), [("captions", 3, None), ("vqa", 3, 3), ("nlvr2", 6, 3), ("vcr", 3, 27)]
)
def test_every_kind_of_sample_is_checked(task, images, texts):
    samples = scenes(task, count=3, size=24)
    check = check_samples(samples)
    assert check.ok
    assert check.images == images
    assert check.texts == (texts or sum(len(sample.captions) for sample in samples))


def test_an_empty_source_is_not_in_order():
    assert not check_samples([]).ok


def test_only_the_first_findings_of_a_kind_are_kept(monkeypatch):
    monkeypatch.setattr("evle.inspection.findings.NAMED", 3)
    check = check_samples([CaptionSample(str(i), b"no image", ("x",)) for i in range(5)])
    assert (check.unreadable.count, len(check.unreadable.lines)) == (5, 3)
    assert "  ... and 3 more" in check.lines(most=2)
