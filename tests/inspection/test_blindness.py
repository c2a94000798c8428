"""The blind guesser finds what words give away, and finds nothing to go by in our scenes."""

import pytest

from evle.data.samples import NLVR2Sample, VCRSample, VQASample
from evle.data.synthetic.scenes import scenes
from evle.inspection.blindness import blind_accuracy


def vqa(question, answer, count=10):
    return [VQASample("k", b"", question, (answer,), question_type="colour")] * count


def test_the_guesser_takes_the_likeliest_answer_to_the_same_question():
    train = vqa("what colour is the sky?", "blue", 8) + vqa("what colour is the sky?", "grey", 2)
    found = blind_accuracy(train, vqa("what colour is the sky?", "blue", 3) + vqa("what colour is the sky?", "grey", 1))
    assert found.blind == {"colour": 75.0}
    assert found.chance == {"colour": 50.0}
    assert found.counts == {"colour": 4}


def test_an_unseen_question_is_guessed_from_its_first_words():
    train = vqa("what colour is the sky?", "blue")
    assert blind_accuracy(train, vqa("what colour is the sea?", "blue")).blind == {"colour": 100.0}
    assert blind_accuracy([], vqa("what colour is the sea?", "blue")).blind == {"colour": 0.0}


def test_a_word_that_gives_a_choice_away_is_found():
    sample = VCRSample(
        "k", b"", (), ("why", "?"), tuple((word,) for word in "abcd"), tuple(("x", word) for word in "abcd"), 2, 1
    )
    found = blind_accuracy([sample] * 20, [sample])
    assert found.blind == {"answer": 100.0, "rationale": 100.0}
    assert found.chance == {"answer": 25.0, "rationale": 25.0}


def test_tags_tell_nothing_by_their_number():
    def sample(right):
        return VCRSample(
            "k", b"", (), ("why", (0,)), tuple(((tag,),) for tag in (1, 2, 3, 4)), (("x",),) * 4, right, None
        )

    found = blind_accuracy([sample(2)] * 20, [sample(2)])
    assert found.blind["answer"] == pytest.approx(25)


def test_a_sentence_that_is_mostly_true_is_found():
    true, false = (NLVR2Sample("k", (b"", b""), "there is a dog", label) for label in (True, False))
    assert blind_accuracy([true] * 9 + [false], [true] * 3 + [false]).blind == {"nlvr2": 75.0}


@pytest.mark.parametrize("world", [{}, {"shapes": 6, "colours": 6, "patterns": False}], ids=["whole", "small"])
@pytest.mark.parametrize(("task", "count", "margin"), [("vqa", 2000, 9), ("nlvr2", 600, 0.1), ("vcr", 800, 5)])
def test_guessing_without_looking_is_near_chance_on_scenes(task, count, margin, world):
    found = blind_accuracy(scenes(task, "train", count=3 * count, **world), scenes(task, "test", count=count, **world))
    for kind, blind in found.blind.items():
        # two standard errors of 200 yes/no questions are 7 points
        assert blind <= found.chance[kind] + margin, kind
