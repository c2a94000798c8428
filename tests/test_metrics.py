"""Scores against numbers worked out by hand, naive loops, and the official evaluator's oddities."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import references
from evle.data.corpora.nlvr2 import sentence_of
from evle.errors import DataError
from evle.metrics import (
    CONTRACTIONS,
    NOT_FOUND,
    average_precision,
    best_ranks,
    list_ranks,
    nlvr2_scores,
    normalize_answer,
    retrieval_chance,
    retrieval_scores,
    soft_scores,
    top_k,
    vcr_scores,
    vqa_accuracy,
    vqa_score,
)

# --- retrieval

small_matrices = st.integers(0, 10_000).map(lambda seed: torch.Generator().manual_seed(seed))


def whole_numbers(rows, width, generator):
    """Embeddings whose products are exact in float32, with many ties."""
    return torch.randint(-2, 3, (rows, width), generator=generator).float()


@given(small_matrices, st.integers(1, 9), st.integers(1, 12), st.integers(1, 14), st.integers(1, 40))
def test_top_k_is_a_stable_sort_whatever_the_blocks(generator, num_queries, num_gallery, k, block_entries):
    queries, gallery = whole_numbers(num_queries, 3, generator), whole_numbers(num_gallery, 3, generator)
    scores, indices = top_k(queries, gallery, k, block_entries=block_entries)
    for query, row_scores, row_indices in zip(queries, scores, indices):
        products = (gallery @ query).tolist()
        order = sorted(range(num_gallery), key=lambda item: (-products[item], item))[:k]
        assert row_indices.tolist() == order
        assert row_scores.tolist() == [products[item] for item in order]


@given(small_matrices, st.integers(1, 9), st.integers(1, 12), st.integers(1, 40))
def test_ranks_equal_a_naive_count_whatever_the_blocks(generator, num_queries, num_gallery, block_entries):
    queries, gallery = whole_numbers(num_queries, 3, generator), whole_numbers(num_gallery, 3, generator)
    query_ids = torch.randint(0, 4, (num_queries,), generator=generator)
    gallery_ids = torch.randint(0, 4, (num_gallery,), generator=generator)
    ranks = best_ranks(queries, gallery, query_ids, gallery_ids, block_entries=block_entries)
    for query, number, rank in zip(queries, query_ids, ranks.tolist()):
        products = (gallery @ query).tolist()
        right = [score for score, item in zip(products, gallery_ids) if item == number]
        wrong = [score for score, item in zip(products, gallery_ids) if item != number]
        assert rank == (sum(score >= max(right) for score in wrong) if right else NOT_FOUND)


def test_a_hand_scored_retrieval():
    """Two images with two captions each; rows are images, columns captions.

    0.9 0.1 | 0.5 0.2      image 0: its first caption is best: rank 0
    0.8 0.3 | 0.4 0.7      image 1: caption 0 (0.8) comes before its best (0.7): rank 1
    Columns, captions to images: 0.9 > 0.8 rank 0; 0.1 < 0.3 rank 1; 0.4 < 0.5 rank 1; 0.7 > 0.2 rank 0.
    """
    table = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.8, 0.3, 0.4, 0.7]])
    images, texts = torch.eye(2), table.T
    image_ids, text_ids = torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1])
    to_text = best_ranks(images, texts, image_ids, text_ids)
    to_image = best_ranks(texts, images, text_ids, image_ids)
    assert to_text.tolist() == [0, 1]
    assert to_image.tolist() == [0, 1, 1, 0]
    scores = retrieval_scores(to_text, to_image, ks=(1, 2))
    assert scores == {"TR@1": 50.0, "TR@2": 100.0, "IR@1": 50.0, "IR@2": 100.0, "R@mean": 75.0}


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    same = torch.ones(6, 4)
    ranks = best_ranks(same, same, torch.arange(6), torch.arange(6))
    assert retrieval_scores(ranks, ranks, ks=(1, 5))["R@mean"] == 0.0


def test_duplicates_with_the_same_id_are_no_wrong_answers():
    same = torch.ones(3, 4)
    assert best_ranks(same, same, torch.zeros(3), torch.zeros(3)).tolist() == [0, 0, 0]


def test_a_model_that_is_not_a_number_finds_nothing():
    broken = torch.full((3, 4), torch.nan)
    ranks = best_ranks(broken, broken, torch.arange(3), torch.arange(3))
    assert retrieval_scores(ranks, ranks, ks=(1,))["R@mean"] == 0.0


def test_lists_are_ranked_by_their_first_right_item():
    ranked = torch.tensor([[7, 5, 5], [5, 7, 5], [1, 2, 3]])
    assert list_ranks(ranked, torch.tensor([5, 5, 5])).tolist() == [1, 0, NOT_FOUND]
    assert retrieval_scores(list_ranks(ranked, torch.tensor([5, 5, 5])), torch.zeros(1), ks=(3,))["TR@3"] == (
        pytest.approx(200 / 3)
    )


def test_an_empty_set_of_queries_is_fine():
    assert top_k(torch.empty(0, 3), torch.ones(5, 3), 2)[1].shape == (0, 2)
    assert best_ranks(torch.empty(0, 3), torch.ones(5, 3), torch.empty(0), torch.ones(5)).shape == (0,)


def test_retrieval_memory_is_bounded_by_the_block(monkeypatch):
    """No matrix product may be larger than the block."""
    largest = 0
    product = torch.Tensor.__matmul__

    def watched(left, right):
        nonlocal largest
        result = product(left, right)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    points = torch.randn(300, 4)
    top_k(points, points, 5, block_entries=1000)
    best_ranks(points, points, torch.arange(300), torch.arange(300), block_entries=1000)
    assert 0 < largest <= 1000


def test_chance_is_what_random_lists_give():
    """Four images with 1, 1, 2, 4 captions: 8 captions, k = 2. Image with n: 1 - C(8-n,2)/C(8,2) = 7/28, 7/28, 13/28,
    22/28.
    """
    image_ids, text_ids = [0, 1, 2, 3], [0, 1, 2, 2, 3, 3, 3, 3]
    chance = retrieval_chance(image_ids, text_ids, ks=(2,))
    assert chance["TR@2"] == pytest.approx(100 * (7 + 7 + 13 + 22) / 28 / 4)
    assert chance["IR@2"] == pytest.approx(50)
    assert retrieval_chance(image_ids, text_ids, ks=(10,)) == {"TR@10": 100.0, "IR@10": 100.0, "R@mean": 100.0}
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        noise = torch.rand(4, 8, generator=generator)
        found.append(best_ranks(torch.eye(4), noise.T, torch.tensor(image_ids), torch.tensor(text_ids)) < 2)
    assert torch.stack(found).double().mean().item() * 100 == pytest.approx(chance["TR@2"], abs=5)  # 4 deviations


# --- VQA

TRICKY = [
    ("Yes", "yes"),
    ("  the   Dog \n", "dog"),
    ("a", ""),
    ("an apple a day", "apple day"),
    ("two", "2"),
    ("None", "0"),
    ("twenty one", "twenty 1"),
    ("ten o'clock", "10 o'clock"),
    ("10 oclock", "10 o'clock"),
    ("dont", "don't"),
    ("don't", "don't"),
    ("couldntve", "couldntve"),  # the official table restores one apostrophe, not two
    ("couldnt've", "couldn't've"),
    ("wed've", "we'd've"),
    ("Im", "im"),  # its key has a capital, the text has none any more: never restored
    ("somebody'd", "somebodyd"),  # the official table's slip
    ("its", "its"),
    ("red.", "red"),
    ("mr. smith", "mr smith"),
    ("1.5", "1.5"),
    (".5", ".5"),
    ("5.", "5"),
    ("3.14.", "3.14"),
    ("a.m.", "am"),
    ("10,000", "10000"),
    ("1,000 dollars/day", "1000 dollarsday"),  # a comma between digits makes every mark vanish
    ("red,blue", "red blue"),
    ("red, blue", "red blue"),
    ("yes/no", "yes no"),
    ("yes / no", "yes no"),
    ("black-and-white", "black and white"),
    ("black-and- white", "blackand white"),  # one mark beside a blank, and every such mark vanishes
    ("t-shirt", "t shirt"),
    ("what?", "what"),
    ("what ?", "what"),
    ('"stop"', "stop"),
    ("[person]", "person"),
    ("50%", "50%"),
    ("12:30", "12:30"),
    ("$5", "$5"),
    ("r&b", "r&b"),
    ("#1", "#1"),
    ("it's", "it's"),
    ("'twas", "'twas"),
    ("Café", "café"),
    ("犬", "犬"),
    ("", ""),
    ("?", ""),
    ("the the", ""),
    # contractions: words that lack an apostrophe get it, words that have it keep it, whatever lacks two keeps lacking
    ("isnt", "isn't"),
    ("isn't", "isn't"),
    ("wont", "won't"),
    ("won't", "won't"),
    ("cant", "can't"),
    ("can not", "can not"),
    ("hed", "he'd"),
    ("hell", "hell"),  # he'll is not in the table
    ("shes", "shes"),  # its key is spelt she's, which changes nothing
    ("lets go", "lets go"),  # as is that of let's
    ("ill", "ill"),
    ("whos", "who's"),
    ("whore", "whore"),
    ("whereve", "where've"),
    ("somebodyd've", "somebody'd've"),
    ("somebodyd", "somebodyd"),
    ("yall'd've", "y'all'd've"),
    ("y'alldve", "y'alldve"),
    ("'ow'sat", "'ow's'at"),
    ("twas", "'twas"),
    ("hadn'tve", "hadn't've"),
    ("i'm", "i'm"),
    ("I'dve", "i'dve"),
    ("dont-walk", "don't walk"),  # punctuation goes first, so the word stands alone when its turn comes
    ("oclock.", "o'clock"),
    # number words and articles, after punctuation and in lower case
    ("Zero", "0"),
    ("TEN", "10"),
    ("eleven", "eleven"),
    ("one-two", "1 2"),
    ("two,three", "2 3"),
    ("a/b", "b"),
    ("An", ""),
    ("A+", ""),  # the plus becomes a blank, and an article is left
    ("The-End", "end"),
    ("none of them", "0 of them"),
    # punctuation, mark by mark
    ("a;b", "b"),
    ("x;y; z", "xy z"),
    ("2=2", "2 2"),
    ("c++", "c"),
    ("c++ code", "c code"),
    ("back\\slash", "back slash"),
    ("snake_case", "snake case"),
    ("<b>bold</b>", "b bold b"),
    ("me@home", "me home"),
    ("`tick`", "tick"),
    ("wow!", "wow"),
    ("(left)", "left"),
    ("{1}", "1"),
    ("1,2,3", "123"),
    ("1, 2", "1 2"),
    ("7-11, 1,000", "711 1000"),
    ("\tred\n\nblue ", "red blue"),
    # periods: dropped unless a digit follows
    ("st. john's", "st john's"),
    ("u.s.a.", "usa"),
    ("no. 5", "no 5"),
    ("no.5", "no.5"),
    ("...", ""),
    ("2.50.", "2.50"),
    ("." * 34 + "x", "..x"),  # 32 at most are removed: the official code passes a flag as a count
]


def test_the_table_of_tricky_answers_is_long_and_has_no_duplicates():
    assert len({answer for answer, _ in TRICKY}) == len(TRICKY) >= 100


@pytest.mark.parametrize(("answer", "normal"), TRICKY)
def test_answers_are_normalised_as_the_official_evaluator_does(answer, normal):
    assert normalize_answer(answer) == normal


def test_the_contraction_table_has_the_official_size():
    """120 official entries, minus 2 that change nothing (let's, she's) and 4 with a capital that can never match."""
    assert len(CONTRACTIONS) == 114
    assert all(spelt != right for spelt, right in CONTRACTIONS.items())


@given(st.integers(0, 10), st.integers(0, 1000))
def test_the_vqa_score_is_the_mean_over_leave_one_out_sets(matches, seed):
    annotators = ["red"] * matches + ["blue"] * (10 - matches)
    random.Random(seed).shuffle(annotators)
    naive = 0.0
    for left_out in range(10):
        others = annotators[:left_out] + annotators[left_out + 1 :]
        naive += min(others.count("red") / 3, 1) / 10
    assert vqa_score("Red.", annotators) == pytest.approx(naive)


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_the_vqa_score_by_hand(matches, score):
    """One match of ten: nine sets see it (1/3 each), one does not: 9/10 * 1/3 = 0.3; three: 7/10 * 1 + 3/10 * 2/3 =
    0.9.
    """
    assert vqa_score("2", ["two"] * matches + ["many"] * (10 - matches)) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "annotators", "normalised", "official", "before_2021"),
    [
        # All ten agree: the official code normalises neither side; before 2021 it normalised the given answer.
        ("t-shirt", ["t-shirt"] * 10, 1.0, 1.0, 0.0),
        ("t shirt", ["t-shirt"] * 10, 1.0, 0.0, 0.0),
        ("t shirt", ["t shirt"] * 10, 1.0, 1.0, 1.0),
        ("two", ["two"] * 10, 1.0, 1.0, 0.0),
        (" red\n", ["red"] * 10, 1.0, 1.0, 1.0),
        ("red", [" red "] * 10, 1.0, 1.0, 0.0),
        ("Yes", ["yes"] * 10, 1.0, 0.0, 1.0),
        ("yes", ["Yes"] * 10, 1.0, 0.0, 0.0),
        # They disagree: both sides are normalised; before 2021 only the punctuation of the annotators was.
        ("t-shirt", ["t-shirt"] * 9 + ["shirt"], 1.0, 1.0, 1.0),
        ("2", ["two"] * 9 + ["2"], 1.0, 1.0, 0.3),
        ("dog", ["a dog"] * 9 + ["dog"], 1.0, 1.0, 0.3),
        ("don't know", ["dont know"] * 7 + ["no"] * 3, 1.0, 1.0, 0.0),
        ("10,000", ["10,000"] * 4 + ["many"] * 6, 1.0, 1.0, 1.0),
        ("red", ["blue"] * 3 + ["red"] * 3 + ["pink"] * 4, 0.9, 0.9, 0.9),
        # Numbers of annotators other than VQAv2's ten are always normalised.
        ("t shirt", ["t-shirt"] * 9, 1.0, 1.0, 1.0),
        ("two", ["Two."], 1.0, 1.0, 1.0),
    ],
)
def test_the_official_rules_by_hand(answer, annotators, normalised, official, before_2021):
    assert vqa_score(answer, annotators) == pytest.approx(normalised)
    assert vqa_score(answer, annotators, official=True) == pytest.approx(official)
    assert vqa_score(answer, annotators, official="before-2021") == pytest.approx(before_2021)
    assert vqa_accuracy([answer], [annotators], official=True)["accuracy"] == pytest.approx(100 * official)


def test_the_official_score_equals_a_plain_implementation_on_5000_random_answers():
    """Answers are drawn from few pieces, so that they often agree, and often only after normalisation."""
    draw = random.Random(0)
    pieces = [
        "two",
        "2",
        "a",
        "The",
        "dog",
        "Dog",
        "t-shirt",
        "t shirt",
        "dont",
        "don't",
        "10,000",
        "10000",
        "u.s.",
        "?",
    ]
    pieces += ["no.", ".5", "yes/no", "none", "0", "\n", "\t", "(left)", "x;y; z", "somebodyd", "it's", ":"]
    glue = (" ", " ", "", "-", ", ", "/")

    def text() -> str:
        return "".join(draw.choice(pieces) + draw.choice(glue) for _ in range(draw.randint(1, 3)))

    seen = set()
    for _ in range(5000):
        pool = [text() for _ in range(draw.randint(1, 3))]
        annotators = [draw.choice(pool) for _ in range(10)]
        answer = draw.choice([*pool, text(), normalize_answer(pool[0])])
        expected = references.vqa_score(answer, annotators)
        assert vqa_score(answer, annotators, official=True) == pytest.approx(expected), (answer, annotators)
        seen.add(round(expected, 1))
    assert seen == {0.0, 0.3, 0.6, 0.9, 1.0}


def test_few_annotators_are_scored_too():
    assert vqa_score("The dog", ["dog"]) == 1.0
    assert vqa_score("cat", ["dog"]) == 0.0
    assert vqa_score("dog", ["dog", "dog"]) == 1.0
    assert vqa_score("dog", ["dog", "cat"]) == 0.5
    assert vqa_score("dog", ["dog"] * 3) == 1.0
    with pytest.raises(DataError, match="without annotators"):
        vqa_score("dog", [])


def test_vqa_accuracy_is_broken_down_by_types():
    scores = vqa_accuracy(
        ["yes", "2", "red", "blue"],
        [["yes"] * 10, ["3"] * 10, ["red"] + ["pink"] * 9, ["blue"] * 10],
        answer_types=["yes/no", "number", "other", "other"],
        question_types=["is the", "how many", "what color", ""],
    )
    assert scores == pytest.approx(
        {
            "accuracy": 57.5,  # (1 + 0 + 0.3 + 1) / 4
            "accuracy/answer/number": 0.0,
            "accuracy/answer/other": 65.0,
            "accuracy/answer/yes/no": 100.0,
            "accuracy/question/how many": 0.0,
            "accuracy/question/is the": 100.0,
            "accuracy/question/what color": 30.0,
        }
    )


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.sampled_from("ab"), min_size=1, max_size=10)), min_size=1))
def test_vqa_accuracy_does_not_depend_on_order(rows):
    forth = vqa_accuracy(*zip(*rows))
    back = vqa_accuracy(*zip(*[(answer, others[::-1]) for answer, others in reversed(rows)]))
    assert forth["accuracy"] == pytest.approx(back["accuracy"])


def test_nothing_to_score_is_an_error_not_a_zero():
    with pytest.raises(DataError, match="nothing to score"):
        vqa_accuracy([], [])
    with pytest.raises(DataError, match="nothing to score"):
        nlvr2_scores([], [])


def test_soft_scores_are_the_training_table():
    answers = ["one"] + ["2"] * 2 + ["three"] * 3 + ["the 4"] * 4
    assert soft_scores(answers) == {"1": 0.3, "2": 0.6, "3": 0.9, "4": 1.0}
    assert soft_scores(["yes"]) == {"yes": 1.0}
    assert soft_scores(["yes", "no"]) == {"yes": 0.3, "no": 0.3}
    assert soft_scores(["yes"] * 3) == {"yes": 1.0}
    assert soft_scores(["the"]) == {}
    assert soft_scores([]) == {}


# --- NLVR2, VCR, patches


def test_nlvr2_consistency_counts_sentences_that_are_right_everywhere():
    """Sentence a: both pairs right; b: one of two; c: its only pair right. Accuracy 4 of 5, consistency 2 of 3."""
    scores = nlvr2_scores([1, 0, 1, 1, 0], [1, 0, 1, 0, 0], ["a", "a", "b", "b", "c"])
    assert scores == pytest.approx({"accuracy": 80.0, "consistency": 200 / 3})
    assert nlvr2_scores([1, 0], [1, 1]) == {"accuracy": 50.0}


def test_nlvr2_by_hand_as_the_official_script_counts():
    """Two sets, sentences 0 and 1 of two pairs each. The pairs of sentence 0 of set 1: right, wrong; of sentence 1:
    both right; of set 2's sentence 0: both right. Accuracy 5 of 6, consistency 2 of 3.
    """
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-1-1-1", "dev-2-0-0", "dev-2-1-0"]
    scores = nlvr2_scores([1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0], [sentence_of(name) for name in names])
    assert scores == pytest.approx({"accuracy": 500 / 6, "consistency": 200 / 3})


def test_vcr_needs_both_right_for_q2ar():
    scores = vcr_scores({"q2a": [0, 1, 2, 3], "qa2r": [0, 0, 0, 0]}, {"q2a": [0, 1, 2, 0], "qa2r": [0, 0, 1, 0]})
    assert scores == {"q2a": 75.0, "qa2r": 75.0, "q2ar": 50.0}
    assert vcr_scores({"q2a": [1]}, {"q2a": [1]}) == {"q2a": 100.0}


def test_average_precision_by_hand():
    """Falling scores: hit, miss, hit, miss. Precision 1 at recall 1/2, 2/3 at recall 1: (1 + 2/3) / 2."""
    scores, labels = torch.tensor([[0.9, 0.8], [0.7, 0.1]]), torch.tensor([[1, 0], [1, 0]])
    assert average_precision(scores, labels) == pytest.approx(5 / 6)
    assert average_precision(-scores, labels) == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_average_precision_of_equal_scores_is_the_share_of_hits():
    assert average_precision(torch.ones(8), torch.tensor([1, 0, 0, 1, 0, 0, 0, 0])) == pytest.approx(0.25)
    assert math.isnan(average_precision(torch.ones(3), torch.zeros(3)))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=20), st.integers(0, 99))
def test_average_precision_does_not_depend_on_order(rows, seed):
    shuffled = random.Random(seed).sample(rows, len(rows))
    first, again = (
        average_precision(torch.tensor([score for score, _ in some]), torch.tensor([label for _, label in some]))
        for some in (rows, shuffled)
    )
    assert first == pytest.approx(again, nan_ok=True)
