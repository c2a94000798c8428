"""Labelled sources are scored one by one, and their mean is the score."""

import json

import pytest

from evle import evaluate, train
from evle.errors import EvleError
from evle.run.splits import DataConfig, read_split
from micro import micro_run

SCENES = {"source": "scenes", "size": 24, "count": 8}
TRAIN = {**SCENES, "split": "train"}
TESTS = [{**SCENES, "split": "test", "label": "one"}, {**SCENES, "split": "test", "seed": 5, "label": "other"}]


def test_the_scores_are_means_over_labels_and_each_is_reported(tmp_path):
    config = micro_run(tmp_path / "run", "vqa", {"train": {"steps": 1}, "data": {"train": TRAIN, "test": TESTS}})
    report = train(config)
    (scores,) = (row for name, row in report.scores.items() if name != "chance")
    assert scores["accuracy"] == pytest.approx((scores["accuracy/one"] + scores["accuracy/other"]) / 2)
    table = next(table for table in report.tables if table.title == "By label")
    assert [row[0] for row in table.rows] == ["one", "other"]
    predictions = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [each["label"] for each in predictions] == ["one"] * 8 + ["other"] * 8
    for index, name in enumerate(("one", "other")):
        alone = config.model_copy(update={"data": DataConfig(train=TRAIN, test={**TESTS[index], "label": name})})
        (again,) = (row for key, row in evaluate(alone).scores.items() if key != "chance")
        assert again["accuracy"] == pytest.approx(scores[f"accuracy/{name}"])


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        ({"test": [TESTS[0], TRAIN]}, "test", "must be different words, one for every source"),
        ({"test": [TESTS[0], TESTS[0]]}, "test", "must be different words, one for every source"),
        ({"test": [{**TESTS[0], "weight": 2}]}, "test", "leave out their weights"),
        ({"train": [TESTS[0]]}, "train", "a label has no effect on training"),
        ({"test": [TRAIN, TRAIN]}, "test", "give each source a label"),
    ],
)
def test_labels_that_cannot_work_are_refused(data, split, message):
    with pytest.raises(EvleError, match=message):
        read_split(DataConfig(**data), split, "vqa")
