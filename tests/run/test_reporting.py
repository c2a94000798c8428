"""What a report's lines and tables hold."""

import numpy as np
import pytest

from evle.engine.run_folder import Run
from evle.engine.steps import FitResult
from evle.report import class_table
from evle.run.evaluation import evaluate
from evle.run.reporting import (
    LOG_ROWS,
    data_read,
    interval,
    interval_table,
    log_table,
    score_lines,
    split_read,
    weights_scored,
)
from evle.run.scoring import read_run
from evle.run.splits import DataConfig
from evle.run.stages import train
from evle.share.card import CARD
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.task import Evaluation
from evle.tasks.vqa import VQATask
from micro import caption_samples, micro_run


@pytest.mark.parametrize(
    ("data", "split", "name"),
    [
        ({"test": {"source": "folder", "path": "data/photos", "split": "val"}}, "val", "photos"),
        ({"path": "data/photos", "test": {"source": "folder"}}, "test", "photos"),
        ({"test": {"source": "scenes", "split": "test"}}, "test", "scenes"),
        ({"test": [{"source": "a", "split": "x"}, {"source": "b", "split": "y"}]}, "x+y", "a+b"),
        ({"test": {"source": "vqav2", "path": "VQA", "split": ["train", "val"]}}, "train+val", "VQA"),
    ],
)
def test_a_score_names_the_split_and_the_data_that_were_read(data, split, name):
    config = DataConfig(**data)
    assert (split_read(config, "test"), data_read(config, "test")) == (split, name)
    (line,) = score_lines(VQATask, Evaluation({"accuracy": 50.0}, {"accuracy": 20.0}), split, name)  # type: ignore
    assert line == f"accuracy on {split} of {name}: 50.00 (chance 20.00)"


def test_the_interval_holds_the_mean_and_narrows_as_the_root_of_the_samples():
    values = [100.0, 0.0] * 50
    low, high = interval(values)
    # A mean of 100 coins: 50 with a standard error of 5, so 95 % lie within 1.96 x 5.
    assert (low, high) == pytest.approx((40.2, 59.8), abs=1.5)
    assert interval(values) == (low, high)
    wide, narrow = (np.subtract(*interval(values * times)[::-1]) for times in (1, 16))
    assert wide / narrow == pytest.approx(4, rel=0.15)
    (table,) = interval_table(Evaluation({"accuracy": 50.0}, values={"accuracy": values, "other": []}))
    assert table.rows == [["accuracy", 50.0, low, high, 100]]
    assert interval_table(Evaluation({"accuracy": 50.0})) == []


def test_a_mean_of_two_means_resamples_each_of_them():
    halves = ([100.0, 0.0] * 50, [100.0, 0.0] * 50)
    low, high = interval(*halves)
    # Two means with a standard error of 5 each: their mean has 5 / sqrt(2), so 95 % are within 1.96 x 3.5.
    assert (low, high) == pytest.approx((43.1, 56.9), abs=1.5)
    (table,) = interval_table(Evaluation({"R@mean": 50.0}, halves={"R@mean": halves}))
    assert table.rows == [["R@mean", 50.0, low, high, 200]]


def test_the_log_is_a_table_of_evenly_spread_lines_up_to_the_last(tmp_path):
    run = Run.start(tmp_path / "run", {}, seed=0)
    assert log_table(run) == []
    for step in range(1, 102):
        run.log("train", {"step": step, "epoch": 0.5, "loss": 1.0 / step, "losses": {"itc": 0.5}})
        run.log("eval", {"step": step, "scores": {}})
    (table,) = log_table(run)
    assert table.folded
    assert table.columns == ["step", "epoch", "loss", "loss/itc"]
    steps = [row[0] for row in table.rows]
    assert len(steps) <= LOG_ROWS
    assert steps[-1] == 101
    assert len(set(np.diff(steps))) == 1


def test_classes_are_counted_with_what_they_were_mistaken_for():
    truths = ["a"] * 4 + ["b"] * 2 + ["c"]
    given = ["a", "b", "b", "x", "b", "a", "c"]
    table = class_table("t", truths, given)
    assert table.rows == [["a", 4, 25.0, "b 2, x 1"], ["b", 2, 50.0, "a 1"], ["c", 1, 100.0, ""]]
    assert class_table("t", [str(i) for i in range(50)], ["0"] * 50).note == "The 20 most frequent of 50 classes."


@pytest.mark.parametrize(
    ("keep", "best_step", "line"),
    [
        (
            "best",
            6,
            "weights of step 6 of 9, chosen as the best on val (R@mean 51.5, by embeddings alone, not re-ranked)",
        ),
        (
            "last",
            6,
            "weights of the last step, 9; not chosen on val (best there: step 6, R@mean 51.5, by embeddings alone",
        ),
        ("best", None, "weights of the last step, 9; no checkpoint was chosen on val"),
    ],
)
def test_a_report_tells_whether_its_weights_were_chosen_on_val(keep, best_step, line):
    result = FitResult(9, None if best_step is None else 51.5, best_step, {}, [], 1.0, 1.0, [])
    assert weights_scored(keep, result, RetrievalTask).startswith(line)  # type: ignore


@pytest.mark.parametrize(("keep", "k_test"), [("best", 0), ("last", 3)])
def test_run_evaluation_and_card_name_the_weights_and_the_ranking(keep, k_test, tmp_path):
    changes = {"train": {"steps": 4, "eval_every": 2, "keep": keep}, "task": {"k_test": k_test}}
    samples = {split: caption_samples() for split in ("train", "val", "test")}
    summary = train(micro_run(tmp_path / "run", "retrieval", changes), samples=samples).summary
    ranking = (
        f"the first {k_test} candidates of each query re-ranked by matching (task.k_test)"
        if k_test
        else "ranked by embeddings alone, not re-ranked (task.k_test=0)"
    )
    (weights,) = [line for line in summary if line.startswith("weights of ")]
    assert ("chosen as the best on val" in weights) == (keep == "best")
    assert ("not chosen on val" in weights) == (keep == "last")
    assert ranking in summary
    report = evaluate(read_run(tmp_path / "run"), samples=caption_samples(), output=tmp_path / "again")
    assert {weights, ranking} <= set(report.summary)
    card = (tmp_path / "run" / "model" / CARD).read_text()
    assert f"{weights[0].upper()}{weights[1:]}. {ranking[0].upper()}{ranking[1:]}." in card
