"""Swapped captions: true of the other image, untrue of this one, and not to be told apart by their words."""

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

import micro
from evle.data.samples import CaptionSample, Swap
from evle.data.synthetic.caption_swaps import CaptionSwaps, swapped_caption
from evle.data.synthetic.swaps import swaps
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
    ("order", "A cat is above the table.", "A table is above the cat.", ("cat", "table")),
    ("order", "a cup to the left of a plate", "a plate to the left of a cup", ("cup", "plate")),
    ("order", "nothing to swap", None, None),
    ("attribute", "an orange car and a blue bus", "a blue car and an orange bus", ("orange", "blue")),
    ("attribute", "An open book on a wooden table", "A wooden book on an open table", ("open", "wooden")),
    ("count", "Two dogs and three cats", "Three dogs and two cats", ("two", "three")),
    ("count", "2 dogs and 3 cats", "3 dogs and 2 cats", ("2", "3")),
    ("count", "from 2 to 3, or at 5", None, None),
    ("order", "the dogs are above the car", None, None),
    ("order", "An owl above the tree", "A tree above the owl", ("owl", "tree")),
    ("order", "the table is below a cat", "the cat is below a table", ("cat", "table")),
    ("relation", "the man left the house", None, None),
    ("relation", "A dog in front of a car", "A dog behind a car", ("in front of", "behind")),
    ("relation", "Behind a car", "In front of a car", ("behind", "in front of")),
    ("order", "a dog in front of the car", "a car in front of the dog", ("dog", "car")),
]


@pytest.mark.parametrize(("type_", "caption", "expected", "words"), SWAPPED)
def test_captions_that_people_wrote_are_swapped(type_, caption, expected, words):
    swapped = swapped_caption(caption, type_)
    assert (swapped and swapped[:2]) == (None if expected is None else (expected, words))


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


def captions(*texts):
    return [CaptionSample(f"{number}", b"", (text,)) for number, text in enumerate(texts)]


def test_both_directions_of_a_relation_balance_an_order():
    """That the cat is above is what both captions of the first pair say; the third says the opposite."""
    same = captions("a cat above the table", "a table below the cat")
    with pytest.raises(DataError, match="balance each other"):
        CaptionSwaps(same, "train", 10, ("order",))
    samples = CaptionSwaps([*same, *captions("a cat under the table")], "train", 10, ("order",))
    assert [sample.captions[0] for sample in samples] == ["a cat above the table", "a cat under the table"]


FRUIT = {"apple": "red", "cherry": "red", "sky": "blue", "sea": "blue", "tree": "green", "frog": "green"}


def usual_and_unusual(seed, unusual):
    """Captions of things in their usual colours, and a share of them in each other's."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(600):
        one, other = rng.choice(sorted(FRUIT), 2, replace=False)
        mine, its = (FRUIT[each] for each in (one, other))
        if rng.random() < unusual:
            mine, its = its, mine
        texts.append(f"a {mine} {one} and a {its} {other}")
    return captions(*texts)


def test_captions_whose_true_form_the_words_tell_are_left_out():
    whole = [
        CaptionSample(each.key, b"", each.captions, swap=Swap(swap.caption, "attribute"))
        for each in usual_and_unusual(0, 0.2)
        if (swap := swapped_caption(each.captions[0], "attribute"))
    ]
    assert text_alone(whole, whole[::2]) > 75
    assert blind_accuracy(whole[::2], whole[1::2]).blind["swap of attribute"] > 75
    train, test = (CaptionSwaps(usual_and_unusual(seed, 0.2), "train", 400, ("attribute",)) for seed in (0, 1))
    assert 60 < len(train) < 400
    assert text_alone(train, test) < 60
    assert blind_accuracy(train, test).blind["swap of attribute"] < 60
    assert train.describe()["right by words alone (%)"] < 60
    assert train.left_out > 100
    with pytest.raises(DataError, match="or words alone tell the true ones"):  # nobody shows a blue apple
        CaptionSwaps(usual_and_unusual(0, 0), "train", 400, ("attribute",))


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
