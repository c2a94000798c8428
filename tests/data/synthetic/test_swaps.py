"""Swapped captions: true of the other image, untrue of this one, and not to be told apart by their words."""

import itertools
import pickle
from collections import Counter

import pytest

import micro
from evle.data.samples import CaptionSample
from evle.data.synthetic.swaps import CaptionSwaps, swapped_caption, swaps
from evle.errors import ConfigError, DataError
from evle.inspection.blindness import blind_accuracy
from scene_truth import Judge

SMALL = {"source": "scenes", "size": 48, "shapes": 6, "colours": 6, "patterns": False, "max_things": 4}


def is_true(text, scene):
    """Whether a caption is true, by the independent judge of scenes and by counting kinds."""
    judge = Judge()
    if " and " not in text:
        first, relation, second = next(
            (one.removeprefix("the "), each, other.removeprefix("the "))
            for each in ("left of", "right of", "above", "below")
            for one, found, other in [text.partition(f" is {each} ")]
            if found
        )
        (one,), (other,) = judge.matching(scene, first), judge.matching(scene, second)
        gap = one.x - other.x if relation in ("left of", "right of") else one.y - other.y
        return gap < -0.2 if relation in ("left of", "above") else gap > 0.2
    counts = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
    parts = [part.split(" ", 1) for part in text.split(" and ")]
    return all(len(judge.matching(scene, phrase)) == counts[number] for number, phrase in parts)


@pytest.mark.parametrize("type_", ["order", "attribute", "relation", "count"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_each_caption_is_true_of_its_own_image_alone(type_, split):
    samples = swaps(split=split, count=80, types=[type_], world=SMALL)
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        assert first.swap.set_id == second.swap.set_id
        assert (first.captions[0], first.swap.caption) == (second.swap.caption, second.captions[0])
        assert first.swap.image == second.image
        for sample in (first, second):
            assert is_true(sample.captions[0], sample.image.scene), sample
            assert not is_true(sample.swap.caption, sample.image.scene), sample


def test_order_and_attribute_swaps_keep_the_words():
    for sample in swaps(count=200, types=["order", "attribute"], world=SMALL):
        words = [Counter(text.replace("an ", "a ").split()) for text in (sample.captions[0], sample.swap.caption)]
        assert words[0] == words[1]


def n_grams(text):
    words = ["<", *text.split(), ">"]
    return [*words, *itertools.pairwise(words), *zip(words, words[1:], words[2:])]


def text_alone(train, test):
    """Accuracy in percent of a classifier that prefers the caption whose 1- to 3-grams were true more often."""
    true, false = Counter(), Counter()
    for sample in train:
        true.update(n_grams(sample.captions[0]))
        false.update(n_grams(sample.swap.caption))

    def score(text):
        return sum((true[gram] + 1) / (true[gram] + false[gram] + 2) - 0.5 for gram in n_grams(text))

    gains = [score(sample.captions[0]) - score(sample.swap.caption) for sample in test]
    return 100 * sum(0.5 if abs(gain) < 1e-9 else float(gain > 0) for gain in gains) / len(gains)


def test_text_alone_stays_at_chance():
    train, test = (swaps(split=split, count=800, world=SMALL) for split in ("train", "test"))
    assert text_alone(train, test) == pytest.approx(50, abs=1)
    found = blind_accuracy(train, test)
    assert set(found.blind) == {f"swap of {each}" for each in ("order", "attribute", "relation", "count")}
    assert all(blind == pytest.approx(50, abs=1) for blind in found.blind.values())


def test_the_classifier_of_text_finds_what_gives_captions_away():
    given_away = [
        CaptionSample("k", b"", ("a dog on a mat",), swap=swaps(count=2)[0].swap.__class__("a mat on a dog", "order"))
    ]
    assert text_alone(given_away, given_away) == 100


def test_samples_are_the_same_every_time_and_travel_to_workers():
    samples = swaps(count=10)
    assert pickle.loads(pickle.dumps(samples))[3] == swaps(count=10)[3]
    assert samples.fingerprint != swaps(count=10, seed=1).fingerprint
    assert len({sample.key for sample in samples}) == 10


SWAPPED = [
    ("attribute", "A red car behind a blue bus.", "A blue car behind a red bus.", ("red", "blue")),
    ("attribute", "a red car and a red bus", None, None),
    ("count", "two dogs and three cats", "three dogs and two cats", ("two", "three")),
    ("relation", "a cup to the left of a plate", "a cup to the right of a plate", ("left", "right")),
    ("relation", "a man left of a sign above a door", None, None),
    ("order", "A cat is above the table.", "The table is above a cat.", ("cat", "table")),
    ("order", "a cup to the left of a plate", "a plate to the left of a cup", ("cup", "plate")),
    ("order", "nothing to swap", None, None),
]


@pytest.mark.parametrize(("type_", "caption", "expected", "words"), SWAPPED)
def test_captions_that_people_wrote_are_swapped(type_, caption, expected, words):
    assert swapped_caption(caption, type_) == (None if expected is None else (expected, words))


@pytest.mark.parametrize(
    ("caption", "type_"),
    [
        ("a black and white cat", "attribute"),
        ("a small, black dog", "attribute"),
        ("two or three people", "count"),
        ("two to three cups", "count"),
    ],
)
def test_words_about_the_same_thing_are_not_exchanged(caption, type_):
    assert swapped_caption(caption, type_) is None  # the swapped caption would be as true


def test_swaps_of_captions_are_balanced_by_their_words():
    texts = ["a red car and a blue bus", "a red cup and a blue plate", "a blue cat and a red dog", "a green tree"]
    source = [CaptionSample(f"{number}", b"", (text,)) for number, text in enumerate(texts)]
    samples = CaptionSwaps(source, "train", 10, ("attribute",))
    assert [sample.captions[0] for sample in samples] == [texts[0], texts[2]]
    assert samples[1].swap.caption == "a red cat and a blue dog"
    with pytest.raises(DataError, match="no two captions have swaps that balance each other"):
        CaptionSwaps([CaptionSample("1", b"", (texts[0],))], "train", 10, ("attribute",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "vqa"}, "source 'swaps' holds swaps and captions, not 'vqa'"),
        ({"world": {"source": "scnes"}}, "world.source='scnes' of swaps does not exist; did you mean 'scenes'"),
        ({"world": {"source": "scenes", "sise": 3}}, "unexpected keyword argument 'sise'; give the options"),
        ({"types": ["ordr"]}, "types: no swap of the type 'ordr'; did you mean 'order'"),
        ({"count": 1}, "count=1 must be at least 2"),
        ({"world": {"source": "scenes", "max_things": 2}}, "world.max_things must be at least 3"),
    ],
)
def test_what_cannot_work_is_one_line(options, message):
    with pytest.raises(ConfigError) as refused:
        swaps(**options)
    assert message in str(refused.value)


def test_a_folder_of_captions_gives_swaps(tmp_path):
    for name, text in (("a.png", "a red car and a blue bus"), ("b.png", "a blue cup and a red plate")):
        micro.plain_image("red").save(tmp_path / name)
        with open(tmp_path / "captions.csv", "a") as file:
            file.write(("image,caption\n" if name == "a.png" else "") + f"{name},{text}\n")
    samples = swaps(str(tmp_path), split="train", world={"source": "folder", "split": None})
    assert [sample.swap.caption for sample in samples] == ["a blue car and a red bus", "a red cup and a blue plate"]
