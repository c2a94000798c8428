"""Scenes of shapes: every word is true, nothing is in doubt or held out from a split, and things can be seen."""

import pickle
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evle.data.images import open_image
from evle.data.samples import Drawing
from evle.data.synthetic.drawing import COLOURS, PATTERNS, SHAPES, TILTS, shape_masks
from evle.data.synthetic.language import content
from evle.data.synthetic.scenes import PAIRS_PER_STATEMENT, held_out, scenes, shape_composer
from evle.errors import ConfigError
from scene_truth import Judge

SEEDS = st.integers(0, 10_000)
SPLITS = st.sampled_from(["train", "val", "test"])
WORLDS = st.sampled_from([{}, {"patterns": False, "shapes": 4, "colours": 5}, {"shapes": 6, "colours": 6}])
FEWEST = st.sampled_from([1, 2])
JUDGE = Judge()
COUNT = 25  # samples looked at in each random data set


def of(task, split="train", seed=0, count=COUNT, **options):
    return scenes(task, split, seed=seed, count=count, **options)


def scenes_of(sample):
    drawings = sample.images if hasattr(sample, "images") else (sample.image,)
    return [drawing.scene for drawing in drawings]


@settings(max_examples=25, deadline=None)
@given(SEEDS, SPLITS, WORLDS)
def test_every_caption_is_true_and_the_first_one_complete(seed, split, world):
    for sample in of("captions", split, seed, **world):
        assert len(sample.captions) >= 3
        for caption in sample.captions:
            assert JUDGE.true_of(sample.image.scene, caption), caption


@settings(max_examples=25, deadline=None)
@given(SEEDS, SPLITS, WORLDS, FEWEST)
def test_every_answer_is_the_one_right_answer(seed, split, world, fewest):
    for sample in of("vqa", split, seed, min_things=fewest, **world):
        assert JUDGE.answer(sample.image.scene, sample.question) == sample.answers[0], sample.question


@settings(max_examples=25, deadline=None)
@given(SEEDS, SPLITS, WORLDS)
def test_every_statement_is_as_true_as_its_label_says(seed, split, world):
    for sample in of("nlvr2", split, seed, **world):
        left, right = scenes_of(sample)
        assert JUDGE.true_of_pair(left, right, sample.sentence) == sample.label, sample.sentence


@settings(max_examples=25, deadline=None)
@given(SEEDS, SPLITS, st.sampled_from([{}, {"patterns": False, "shapes": 6, "colours": 6}]))
def test_exactly_the_labelled_choices_are_true(seed, split, world):
    for sample in of("vcr", split, seed, **world):
        for choices, label in (
            (sample.answer_choices, sample.answer_label),
            (sample.rationale_choices, sample.rationale_label),
        ):
            assert len(set(choices)) == 4
            truths = [JUDGE.true_choice(sample, sample.question, choice) for choice in choices]
            assert truths == [place == label for place in range(4)], (sample.question, choices)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from(["captions", "vqa", "nlvr2", "vcr"]), st.sampled_from([48, 64, 224]))
def test_things_lie_inside_apart_and_big_enough_to_be_seen(seed, task, size):
    for sample in of(task, seed=seed, count=12, size=size):
        for drawing in sample.images if hasattr(sample, "images") else (sample.image,):
            boxes = drawing.extents()
            for left, upper, right, lower in boxes:
                assert 0 <= left < right <= size
                assert 0 <= upper < lower <= size
                assert max(right - left, lower - upper) >= 0.14 * size
            for one, other in combinations(boxes, 2):
                across = min(one[2], other[2]) - max(one[0], other[0])
                down = min(one[3], other[3]) - max(one[1], other[1])
                assert across <= 1 or down <= 1, "two things overlap by more than the pixel of an anti-aliased edge"


def test_a_drawn_thing_has_its_colour_and_its_ground_stays_light():
    for sample in of("captions", count=60, size=96):
        pixels = np.asarray(sample.image.draw()).astype(int)
        covered = np.zeros(pixels.shape[:2], dtype=bool)
        for thing, (left, upper, right, lower) in zip(sample.image.scene.things, sample.image.extents()):
            covered[upper:lower, left:right] = True
            inside = pixels[upper:lower, left:right].reshape(-1, 3)
            near = np.abs(inside - COLOURS[thing.traits.colour]).max(axis=1) <= 16
            assert near.mean() > 0.04, thing.traits  # the thin line of a hollow shape is least
        assert pixels[~covered].min() > 150


def test_patterns_differ_to_the_eye_even_on_the_smallest_shapes():
    for kind in SHAPES:
        for tilt in TILTS:
            inks = [np.asarray(shape_masks(kind, pattern, 12, tilt)[0], dtype=float) for pattern in PATTERNS]
            for one, other in combinations(inks, 2):
                assert np.abs(one - other).sum() > 0.12 * inks[0].sum(), (kind, tilt)


def test_boxes_fit_the_image_and_name_what_they_hold():
    for sample in of("captions"):
        for box, thing in zip(sample.boxes, sample.image.scene.things, strict=True):
            assert box.label == thing.traits.kind
            assert box.x <= thing.x * 64 <= box.x + box.width
            assert thing in JUDGE.matching(sample.image.scene, box.phrase)


def test_val_and_test_show_combinations_that_training_never_shows_or_names():
    seen = {"train": set(), "val": set(), "test": set()}
    for split, found in seen.items():
        for task in ("captions", "vqa", "nlvr2", "vcr"):
            for sample in of(task, split, count=400):
                for scene in scenes_of(sample):
                    found |= {(thing.traits.colour, thing.traits.kind) for thing in scene.things}
                    found |= {(thing.traits.pattern, thing.traits.kind) for thing in scene.things}
    assert len(seen["val"] - seen["train"]) == len(seen["test"] - seen["train"]) == 15
    assert not (seen["val"] - seen["train"]) & (seen["test"] - seen["train"])
    held = seen["test"] - seen["train"]
    for task in ("vqa", "nlvr2"):
        for sample in of(task, count=2000):
            text = sample.question if task == "vqa" else sample.sentence
            assert not any(f"{word} {kind}" in text for word, kind in held)


def test_no_shape_colour_or_pattern_is_rarer_in_training():
    pool = shape_composer("train")._pools[0].traits
    for field in ("kind", "colour", "pattern", "size"):
        assert len(set(Counter(getattr(each, field) for each in pool).values())) == 1, field
    assert all(held_out(each) == "" for each in pool)


def test_samples_depend_on_seed_split_and_index_alone():
    for task in ("captions", "vqa", "nlvr2", "vcr"):
        assert of(task)[17] == of(task, count=1000)[17]
        assert of(task)[17] != of(task, seed=1)[17]
        assert of(task)[17] != of(task, "val")[17]
        assert pickle.loads(pickle.dumps(of(task)))[17] == of(task)[17]
    drawing = of("captions")[3].image
    assert isinstance(drawing, Drawing)
    assert drawing.draw().tobytes() == pickle.loads(pickle.dumps(drawing)).draw().tobytes()
    assert open_image(drawing).size == (64, 64)


def test_the_fingerprint_tells_data_sets_apart():
    prints = [
        of("captions").fingerprint,
        of("vqa").fingerprint,
        of("captions", "val").fingerprint,
        of("captions", seed=1).fingerprint,
        of("captions", size=96).fingerprint,
        of("captions", max_things=4).fingerprint,
        of("captions", min_things=1).fingerprint,
        of("captions", num_captions=1).fingerprint,
        of("captions", questions=0.5).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert of("captions").fingerprint == of("captions").fingerprint


def test_scenes_may_be_small_and_told_by_fewer_captions_or_by_questions_with_answers():
    numbers = Counter(len(sample.image.scene.things) for sample in of("captions", count=90, min_things=1, max_things=3))
    assert sorted(numbers) == [1, 2, 3]
    assert min(numbers.values()) > 15
    usual, fullest = of("captions")[5], of("captions", num_captions=1)[5]
    assert fullest.captions == usual.captions[:1]
    assert len(usual.captions) > 1
    told = of("captions", count=200, max_things=3, questions=0.5)
    asking = [sample for sample in told if "?" in sample.captions[0]]
    assert 70 <= len(asking) <= 130
    for sample in asking:
        (text,) = sample.captions
        question, answer = text.split("? ")
        assert JUDGE.answer(sample.image.scene, f"{question}?") == answer, text
        assert content(sample.image.scene) == sample.match_id


def test_no_name_of_an_object_tells_what_it_is():
    assert {(box.label, box.phrase) for sample in of("vcr") for box in sample.objects} == {("thing", "")}


def test_yes_and_no_are_exactly_balanced_and_so_are_labels():
    samples = of("vqa", count=400)
    for kind in ("exists", "relates", "comparison"):
        answers = Counter(sample.answers[0] for sample in samples if sample.question_type == kind)
        assert answers["yes"] == answers["no"] == 20, kind
    pairs = of("nlvr2", count=80)
    by_set = Counter((sample.set_id, sample.label) for sample in pairs)
    assert set(by_set.values()) == {PAIRS_PER_STATEMENT // 2}
    assert len({sample.sentence for sample in pairs}) >= 19


def test_images_with_the_same_things_share_a_match_id():
    samples = of("captions", count=200)
    for one, other in combinations(samples, 2):
        same = sorted(t.traits for t in one.image.scene.things) == sorted(t.traits for t in other.image.scene.things)
        assert same == (one.match_id == other.match_id)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "caption"}, "did you mean 'captions'"),
        ({"task": "vqa", "split": "tset"}, "did you mean 'test'"),
        ({"task": "vqa", "max_things": 20}, "max_things=20 must be from 2 to 8"),
        ({"task": "vcr", "max_things": 9}, "max_things=9 must be from 2 to 8 for vcr"),
        ({"task": "nlvr2", "max_things": 3}, "from 4 to 8 for statements of the types both, one, total"),
        ({"task": "nlvr2", "max_things": 3, "statements": ["more"]}, "from 4 to 8 for statements of the types more"),
        ({"statements": ["exactly one"]}, "no statements of the type 'exactly one' here; choose one of: both"),
        ({"min_things": 5, "max_things": 4}, "min_things=5 must be from 1 to max_things=4"),
        ({"questions": 1.5}, "questions=1.5 must be from 0 to 1"),
        ({"task": "vqa", "count": 0}, "count=0 must be at least 1"),
    ],
)
def test_an_impossible_option_is_refused_with_a_hint(options, words):
    with pytest.raises(ConfigError, match=words):
        scenes(**options)


def test_a_smaller_world_shows_and_names_only_its_things():
    world = {"shapes": 5, "colours": 4, "patterns": False}
    kinds, hues = set(list(SHAPES)[:5]), set(list(COLOURS)[:4])
    for split in ("train", "test"):
        seen = {
            thing.traits for sample in of("captions", split, count=200, **world) for thing in sample.image.scene.things
        }
        assert {each.kind for each in seen} == kinds
        assert {each.colour for each in seen} == hues
        assert {each.pattern for each in seen} == {""}
    trained, tested = (
        {each for sample in of("vqa", split, count=400, **world) for each in sample.image.scene.things}
        for split in ("train", "test")
    )
    combinations_of = lambda things: {(each.traits.kind, each.traits.colour) for each in things}  # noqa: E731
    assert combinations_of(tested) - combinations_of(trained), "testing shows combinations that training never shows"


def test_only_the_kinds_of_questions_that_were_asked_for():
    asked = [sample.question_type for sample in of("vqa", kinds=["count", "colour"], count=6)]
    assert asked == ["count", "colour"] * 3
    with pytest.raises(ConfigError, match="no questions of the type 'color' here; did you mean 'colour'"):
        of("vqa", kinds=["color"])
    with pytest.raises(ConfigError, match="no questions of the type 'pattern' here"):
        of("vqa", kinds=["pattern"], patterns=False)


def test_only_the_kinds_of_statements_that_were_asked_for():
    starts = {"both": "both pictures show a", "one": "exactly one of", "each": "the left picture shows a"}
    for fewest in (1, 2):
        pairs = of("nlvr2", statements=list(starts), min_things=fewest, max_things=2, count=120)
        for number, pair in enumerate(pairs):
            start = list(starts.values())[number // PAIRS_PER_STATEMENT % len(starts)]
            assert pair.sentence.startswith(start), pair.sentence
            left, right = scenes_of(pair)
            assert JUDGE.true_of_pair(left, right, pair.sentence) == pair.label, pair.sentence
        numbers = {len(scene.things) for pair in pairs for scene in scenes_of(pair)}
        assert numbers == set(range(fewest, 3))


@pytest.mark.parametrize("name", ["shapes", "colours"])
@pytest.mark.parametrize(("task", "least"), [("vqa", 4), ("vcr", 6)])
def test_a_world_too_small_for_its_task_is_refused(name, task, least):
    with pytest.raises(ConfigError, match=f"{name}={least - 1} must be from {least} to 10 for {task}"):
        of(task, **{name: least - 1})


def test_a_question_may_be_asked_of_a_thing_that_stands_alone():
    for fewest in (1, 2):
        asked = of("vqa", kinds=["colour"], min_things=fewest, max_things=2, count=40)
        assert min(len(sample.image.scene.things) for sample in asked) == fewest
