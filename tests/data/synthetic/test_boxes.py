"""Images in the style of NLVR: every statement is true of one image and untrue of another; words alone tell nothing."""

import pickle
import re
from collections import Counter

import numpy as np
import pytest

from evle.data.synthetic.box_words import BOX, COLOURS, HEIGHT, MOST, SHAPES, Boxes, Item
from evle.data.synthetic.boxes import BoxSamples, boxes, random_boxes, rearranged
from evle.data.synthetic.statements import FORMS
from evle.errors import ConfigError
from evle.inspection.blindness import blind_accuracy
from evle.models.eve import EVEConfig
from evle.tasks.vqa import VQAConfig, VQATask


@pytest.fixture(scope="module")
def many():
    return list(boxes(count=2000))


def test_two_samples_share_a_statement_that_is_true_of_the_first_alone():
    samples = boxes(count=60)
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        assert first.question == second.question
        assert first.set_id == second.set_id
        assert (first.answers, second.answers) == (("true",), ("false",))
        assert first.image.boxes != second.image.boxes
    assert len({sample.question.split(" with ")[0] for sample in samples}) > 5


NUMBERS = {
    word: number for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight"), 1)
}
NUMBERS |= {str(number): number for number in range(1, 9)}
NOUN = (
    "(?P<size>small |medium |big |large )?(?P<colour>black |yellow |blue )?"
    "(?P<shape>circle|square|triangle|item|object|shape|block)s?"
)
SIDES = {"small": 10, "medium": 20, "big": 30, "large": 30}


def _is(found: re.Match[str], item: Item) -> bool:
    size, colour, shape = ((found[name] or "").strip() for name in ("size", "colour", "shape"))
    of_any_shape = shape in ("item", "object", "shape", "block")
    return (
        (not size or item.size == SIDES[size])
        and (not colour or item.colour == colour)
        and (of_any_shape or item.shape == shape)
    )


def _judged(words: str, boxes_: Boxes) -> bool | None:
    """The truth of a statement by rules of this test alone; None for forms that it does not know."""
    number = f"(?P<how>exactly|at least|at most|more than|only) (?P<number>{'|'.join(NUMBERS)})"
    compare = {
        "exactly": int.__eq__,
        "only": int.__eq__,
        "at least": int.__ge__,
        "at most": int.__le__,
        "more than": int.__gt__,
    }
    if found := re.fullmatch(f"there (?:is|are) {number} {NOUN}", words):
        count = sum(_is(found, item) for box in boxes_ for item in box)
        return compare[found["how"]](count, NUMBERS[found["number"]])
    if found := re.fullmatch(f"there is a (?:box|tower) with {number} {NOUN}", words):
        counts = (sum(_is(found, item) for item in box) for box in boxes_)
        return any(compare[found["how"]](count, NUMBERS[found["number"]]) for count in counts)
    if found := re.fullmatch(f"there (?:is|are) {number} (?:box|boxes) with an? {NOUN}", words):
        count = sum(any(_is(found, item) for item in box) for box in boxes_)
        return compare[found["how"]](count, NUMBERS[found["number"]])
    if found := re.fullmatch(
        "there is a tower (?:with|which has) an? (black|yellow|blue)(?: block at the)? (top|base|bottom)", words
    ):
        return any(box[-1 if found[2] == "top" else 0].colour == found[1] for box in boxes_)
    if found := re.fullmatch(f"there is an? {NOUN} (?:closely )?touching the (top|bottom)", words):
        at_edge = {"top": lambda item: item.y == 0, "bottom": lambda item: item.y + item.size == HEIGHT}[found[4]]
        return any(_is(found, item) and at_edge(item) for box in boxes_ for item in box)
    if found := re.fullmatch(f"(?:all|all the|each|every) (?:box|boxes|tower|towers) (?:have|has) an? {NOUN}", words):
        return all(any(_is(found, item) for item in box) for box in boxes_)
    if found := re.fullmatch(f"none of the (?:box|tower)e?s ha(?:ve|s) an? {NOUN}", words):
        return not any(_is(found, item) for box in boxes_ for item in box)
    if found := re.fullmatch("the tallest tower has an? (black|yellow|blue) (top|base|bottom)", words):
        return max(boxes_, key=len)[-1 if found[2] == "top" else 0].colour == found[1]
    if found := re.fullmatch("there are (more|fewer) (black|yellow|blue) (\\w+)s than (black|yellow|blue) \\3s", words):
        kinds = [item.colour for box in boxes_ for item in box if found[3] not in SHAPES or item.shape == found[3]]
        one, other = kinds.count(found[2]), kinds.count(found[4])
        return one > other if found[1] == "more" else one < other
    return None


def test_the_truth_of_a_statement_is_what_its_words_say(many):
    judged = 0
    for sample in many:
        truth = _judged(sample.question, sample.image.boxes)
        if truth is not None:
            judged += 1
            assert sample.answers == ("true" if truth else "false",), sample.question
    assert judged > 150


def test_every_form_of_statement_is_true_of_some_images_and_untrue_of_others():
    for form in FORMS:
        rng = np.random.default_rng(0)
        found = set()
        for _ in range(20):
            statement = form(rng)
            found |= {statement.holds(random_boxes(rng, statement.towers)) for _ in range(20)}
        assert found - {None} == {True, False}, form.__name__


def test_plural_nouns_have_plural_verbs(many):
    for sample in many:
        assert not re.search(r"there is (exactly|only|at least|at most|more than) (?!one|1)", sample.question), (
            sample.question
        )
        assert not re.search(r"(boxes|towers) (that|which) has|(box|tower) (that|which) have", sample.question)


def test_items_stay_in_their_boxes_and_apart():
    for sample in boxes(count=100):
        for box in sample.image.boxes:
            assert 1 <= len(box) <= MOST
            for item in box:
                assert 0 <= item.x <= BOX - item.size
                assert 0 <= item.y <= HEIGHT - item.size


def test_an_image_shows_three_grey_boxes_and_the_colours_of_its_items():
    """In the size of NLVR's own images, so that every framing treats both alike."""
    sample = boxes(count=2)[0]
    pixels = np.asarray(sample.image.draw())
    assert pixels.shape == (100, 400, 3)
    shown = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert (211, 211, 211) in shown
    for item in (item for box in sample.image.boxes for item in box):
        assert COLOURS[item.colour] in shown


def test_a_description_counts_the_items_of_its_boxes():
    for sample in boxes("captions", count=300):
        told = sample.captions[0].split(". ")
        assert len(set(told)) == 2
        for text in told:
            box = sample.image.boxes[("left", "middle", "right").index(text.split()[1])]
            if " tower " in text:
                assert [each for each in text.split() if each in COLOURS] == [item.colour for item in box]
                continue
            found = re.findall(r"(an?|\w+) (small |medium |big )?(black|yellow|blue) (circle|square|triangle)", text)
            numbers = {(colour, shape): NUMBERS.get(number, 1) for number, _, colour, shape in found}
            assert numbers == Counter((item.colour, item.shape) for item in box)


def test_words_alone_tell_nothing():
    found = blind_accuracy(boxes(count=1000), boxes(split="test", count=400))
    assert found.blind["statement"] == pytest.approx(50, abs=1)


def test_samples_are_the_same_every_time_and_travel_to_workers():
    samples = boxes(count=10)
    assert pickle.loads(pickle.dumps(samples))[7] == boxes(count=10)[7]
    assert boxes(split="val", count=10)[7] != samples[7]


def test_what_cannot_work_is_refused():
    for options, message in (
        ({"task": "nlvr2"}, "holds vqa"),
        ({"split": "dev"}, "does not exist"),
        ({"count": 0}, "at least 1"),
        ({"task": "captions", "judged": 2}, "judged=2 must be from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            boxes(**options)


def test_judged_captions_tell_the_truth_of_each_statement():
    samples = boxes("captions", count=600, judged=1.0)
    found = {"true": 0, "false": 0}
    for sample in samples:
        for part in sample.captions[0].split(". "):
            words, said = part.rsplit(" ", 1)
            found[said] += 1
            truth = _judged(words, sample.image.boxes)
            assert truth is None or said == ("true" if truth else "false"), (words, sample.image.boxes)
    assert abs(found["true"] - found["false"]) < 150


def test_a_share_of_the_captions_is_judged():
    samples = boxes("captions", count=200, judged=0.5)
    judged = sum(sample.captions[0].endswith(("true", "false")) for sample in samples)
    assert 70 < judged < 130


@pytest.mark.parametrize("towers", [True, False])
def test_a_rearranged_image_has_the_same_items_in_other_places(towers):
    rng = np.random.default_rng(0)
    moved = 0
    for _ in range(100):
        before = random_boxes(rng, towers)
        after = rearranged(rng, before, towers)
        kinds = [Counter((i.shape, i.colour, i.size) for box in boxes_ for i in box) for boxes_ in (before, after)]
        assert kinds[0] == kinds[1]
        assert all(1 <= len(box) <= MOST for box in after)
        moved += before != after
    assert moved > 80


def test_many_statements_have_two_images_of_the_same_items():
    samples = boxes(count=600)
    totals = [Counter((i.shape, i.colour, i.size) for box in sample.image.boxes for i in box) for sample in samples]
    same = sum(one == other for one, other in zip(totals[::2], totals[1::2], strict=True))
    assert same > 75, same


def test_nothing_is_nearly_but_not_quite_at_a_wall():
    for sample in boxes("captions", count=200):
        for item in (item for box in sample.image.boxes for item in box if len(box) > 4):
            for gap in (item.x, item.y, BOX - item.x - item.size, HEIGHT - item.y - item.size):
                assert gap == 0 or gap > 5


def test_one_item_is_no_test_of_items_of_the_same_color(many):
    """Nor is a tower of one block a test of its base and top."""
    for sample in many:
        if re.search(r"(has|have|with) (items of the same|only (black|blue|yellow) (items|blocks))", sample.question):
            assert all(len(box) > 1 for box in sample.image.boxes), sample.question


def test_the_answers_of_statements_are_known_before_these_are_made(monkeypatch):
    samples = boxes("vqa", count=7, seed=3)
    facts = [(each.key, each.answers, each.answer_type, each.question_type) for each in samples]
    monkeypatch.setattr(BoxSamples, "at", lambda samples, index: pytest.fail("a sample was made"))
    assert [(each.key, each.answers, each.answer_type, each.question_type) for each in samples.answered()] == facts
    task = VQATask(VQAConfig(), None)
    task.prepare(samples, EVEConfig.from_preset("eve-tiny"))
    assert (task.answers, task.prior["statement"]) == (["true", "false"], "true")
