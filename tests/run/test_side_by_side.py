"""Several finished runs on one page."""

import json

import pytest
from PIL import Image

from commands import call
from evle.errors import ConfigError, DataError
from evle.report import Cell, Curve, Gallery, GalleryRow, Report, Table
from evle.run.side_by_side import compare_runs


def finish(folder, value, answers, *, task="vqa", init=None, data="d0", lr=0.1):
    """The report of a run with a score, its interval, a loss, and an answer (text, mark) to each of some questions."""
    cells = [Cell(Image.new("RGB", (8, 8), (40 * number, 0, 0)), *answer) for number, answer in enumerate(answers)]
    pair = [Cell(Image.new("RGB", (8, 8), "blue")), Cell(None, f"answer of {folder.name}", "good")]
    Report(
        folder.name,
        scores={"test": {"accuracy": value, "accuracy/other": 1.0}, "chance": {"accuracy": 50.0}},
        tables=[Table("Confidence intervals", ["score", "value", "low", "high", "samples"],
                      [["accuracy", value, value - 2, value + 2, 100]])],
        curves=[Curve("Training losses", "step", "loss", {"loss": [(1, value), (2, 1.0)], "loss/a": [(1, 0.0)]})],
        galleries=[Gallery("Questions: drawn at random", [GalleryRow("", cells)]),
                   Gallery("Pairs: surest and right", [GalleryRow("both are blue", pair)])],
        provenance={"data": {"test": {"fingerprint": data}},
                    "config": {"task": {"name": task}, "model": {"init": init}, "train": {"steps": 2},
                               "optim": {"lr": lr}, "output": str(folder)}},
    ).write(folder)  # fmt: skip
    (folder / "config.yaml").write_text("")
    return folder


@pytest.fixture
def runs(tmp_path):
    first = finish(tmp_path / "all" / "a", 60.0, [("what? red", "good"), ("where? left (right: top)", "bad")])
    other = [("what? blue (right: red)", "bad"), ("where? left (right: top)", "bad")]
    second = finish(tmp_path / "all" / "b", 70.0, other, init=str(first), lr=0.2)
    return first, second


def table(report, title):
    return next(each for each in report.all_tables() if each.title == title)


def test_scores_are_rows_with_intervals_and_chance(runs, tmp_path):
    scores = table(compare_runs(runs, tmp_path), "vqa: scores")
    assert scores.columns == ["score", "chance", "a", "b"]
    assert scores.rows == [
        ["accuracy", 50.0, "60.00 (58.00 to 62.00)", "70.00 (68.00 to 72.00)"],
        ["accuracy/other", None, 1.0, 1.0],
    ]


def test_the_stages_of_a_recipe_are_taken_and_linked(runs, tmp_path):
    report = compare_runs([tmp_path / "all"], tmp_path / "out")
    assert report.links == [("a", "../all/a/report.html"), ("b", "../all/b/report.html")]
    assert [row[:3] for row in table(report, "Runs").rows] == [["a", "vqa", "random weights"], ["b", "vqa", "a"]]


def test_curves_share_their_axes(runs, tmp_path):
    (losses,) = compare_runs(runs, tmp_path).curves
    assert losses.series == {"a": [(1, 60.0), (2, 1.0)], "b": [(1, 70.0), (2, 1.0)]}


def test_the_same_questions_are_side_by_side_and_disagreement_comes_first(runs, tmp_path):
    questions, pairs = compare_runs(runs, tmp_path).galleries
    assert [cell.text for cell in questions.rows[0].cells] == [
        "what?\n✓ a: red\n✗ b: blue (right: red)",
        "where?\n✗ a: left (right: top)\n✗ b: left (right: top)",
    ]
    (row,) = pairs.rows
    assert row.heading == "both are blue"
    assert [cell.text for cell in row.cells] == ["", "a: answer of a", "b: answer of b"]


def test_settings_that_differ_are_listed(runs, tmp_path):
    rows = table(compare_runs(runs, tmp_path), "Settings that differ").rows
    assert ["optim.lr", "0.1", "0.2"] in rows
    assert not any(row[0] == "output" for row in rows)


def test_runs_tested_on_other_data_are_not_called_comparable(runs, tmp_path):
    other = finish(tmp_path / "c", 90.0, [], data="d1")
    assert any("tested on different data" in line for line in compare_runs([*runs, other], tmp_path).summary)
    assert not any("different data" in line for line in compare_runs(runs, tmp_path).summary)


def test_the_verb_writes_one_page(runs, tmp_path):
    printed = call("report", *runs, "-o", tmp_path / "page")
    assert "vqa: accuracy 70.00 (68.00 to 72.00) by b, the best of 2 runs" in printed
    assert "next: python -m webbrowser" in printed
    assert (tmp_path / "page" / "report.html").is_file()
    rows = [json.loads(line) for line in call("report", *runs, "-o", tmp_path / "page", "--json").splitlines()[:2]]
    assert [row["run"] for row in rows] == ["a", "b"]


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        compare_runs([tmp_path / "nowhere"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no report\.json; finish the run"):
        compare_runs([tmp_path / "empty"], tmp_path)
    (tmp_path / "empty" / "report.json").write_text(json.dumps({"scores": {"accuracy": 1.0}}))
    with pytest.raises(DataError, match="not the report of a run"):
        compare_runs([tmp_path / "empty"], tmp_path)
