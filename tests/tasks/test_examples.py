"""Examples of a report: drawn by a seed, and the best and the worst."""

import math

from evle.tasks.examples import choose_examples, draw
from evle.tasks.task import EvaluationSettings


def test_a_seed_draws_the_same_examples_and_another_seed_others():
    drawn = [draw(1000, EvaluationSettings(num_examples=12, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 12
    assert drawn[0] == sorted(drawn[0])


def test_only_right_predictions_are_best_and_only_wrong_ones_worst():
    settings = EvaluationSettings(num_examples=6)
    goodness = [0.2, -0.3, 0.9, -0.9, math.nan, 0.5]
    chosen = choose_examples(goodness, settings)
    assert chosen["surest and right"] == [2, 5]
    assert chosen["surest and wrong"] == [3, 1]
    assert set(choose_examples([0.4, 0.6], settings)) == {"drawn at random", "surest and right"}


def test_no_examples_are_no_galleries():
    assert choose_examples([0.4, -0.6], EvaluationSettings(num_examples=0)) == {}
