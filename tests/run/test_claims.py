"""Claims: verdicts from paired differences, and recipes that hold claims."""

import json
import math
import statistics

import pytest

from evle.config import merge
from evle.errors import ConfigError
from evle.run.claims import COLUMNS, Claim, Judged, claims_chart, claims_table, judge, t_quantile
from evle.run.config import read_stages
from evle.run.stages import train
from staged import DEFAULTS, TWO, VQA, write

CLAIM = Claim(text="a is better than b", of="a", than="b")
CLAIMS = {
    "seeds": {"text": "Pre-training improves VQA", "of": "vqa", "than": "scratch"},
    "loss": {"text": "It lowers nothing", "of": "pretrain", "than": "pretrain", "score": "loss", "lower": True},
}
TREE = merge(TWO, {"defaults": {"seeds": [0, 1]}, "stages": {"scratch": VQA}, "claims": CLAIMS})


@pytest.mark.parametrize(
    ("of", "than", "changes", "verdict"),
    [
        ((11.0, 12.0, 13.0), (1.0, 2.0, 3.0), {}, "confirmed"),
        ((11.0, 12.0, 13.0), (1.0, 2.0, 3.0), {"by": 10}, "undecided"),  # the difference is 10, not more
        ((11.0, 12.0, 13.0), (1.0, 2.0, 3.0), {"by": 10.1}, "refuted"),
        ((1.0, 2.0, 3.0), (11.0, 12.0, 13.0), {}, "refuted"),
        ((1.0, 2.0, 3.0), (11.0, 12.0, 13.0), {"lower": True}, "confirmed"),
        ((1.0, 2.0, 3.0), (2.0, 3.0, 4.0), {"by": -2}, "confirmed"),  # at most 2 worse
        ((1.0, 9.0, 2.0), (2.0, 1.0, 3.0), {}, "undecided"),
        ((50.0,), (1.0,), {}, "undecided"),  # one seed shows no spread
        ((), (), {}, "undecided"),
    ],
)
def test_the_verdict_follows_from_the_interval_alone(of, than, changes, verdict):
    assert Judged(CLAIM.model_copy(update=changes), "accuracy", of, than).verdict == verdict


def test_the_interval_is_students_over_paired_differences():
    judged = Judged(CLAIM, "accuracy", (5.0, 7.0, 12.0), (1.0, 2.0, 3.0))
    assert judged.differences == [4.0, 5.0, 9.0]
    half = 4.303 * statistics.stdev([4, 5, 9]) / math.sqrt(3)
    assert judged.interval == pytest.approx((6 - half, 6 + half))
    assert [t_quantile(n) for n in (1, 15)] == [12.706, 2.131]
    assert [t_quantile(n) for n in (16, 20, 30, 60)] == pytest.approx([2.1199, 2.0860, 2.0423, 2.0003], abs=1e-3)


def test_relative_differences_are_percentages_of_the_second_stage():
    judged = Judged(CLAIM.model_copy(update={"relative": True}), "samples_per_second", (150.0, 30.0), (100.0, 20.0))
    assert judged.interval is None  # two equal differences tell no spread
    assert judged.differences == [50.0, 50.0]
    assert "+50.00 %" in judged.row()


def test_only_seeds_that_both_stages_have_are_compared():
    scores = {"a": {0: {"accuracy": 5.0}, 1: {"accuracy": 6.0}}, "b": {1: {"accuracy": 2.0}, 2: {"accuracy": 9.0}}}
    (judged,) = judge([CLAIM], scores, {"a": "accuracy", "b": "accuracy"})
    assert (judged.score, judged.of, judged.than) == ("accuracy", (6.0,), (2.0,))
    (judged,) = judge([CLAIM], {}, {"a": "accuracy"})
    assert judged.row()[COLUMNS.index("mean of")] == "not run"
    assert claims_table([]) == []


@pytest.mark.parametrize(
    ("of", "than", "changes", "shown"),
    [
        ((11.0, None, 13.0), (1.0, 2.0, 3.0), {}, "not finite in 1 of 3"),  # a report writes NaN as null
        ((11.0, math.inf, 13.0), (1.0, 2.0, 3.0), {}, "not finite in 1 of 3"),
        ((11.0, 12.0, 13.0), (0.0, 2.0, 3.0), {"relative": True}, "12 ± 1 (3)"),  # no percentage of 0
    ],
)
def test_a_claim_with_a_score_that_is_not_finite_is_undecided(of, than, changes, shown):
    scores = {
        name: {seed: {"accuracy": value} for seed, value in enumerate(row)} for name, row in zip("ab", (of, than))
    }
    (judged,) = judge([CLAIM.model_copy(update=changes)], scores, {"a": "accuracy"})
    assert (judged.interval, judged.verdict) == (None, "undecided")
    row = dict(zip(COLUMNS, judged.row(), strict=True))
    assert (row["mean of"], row["difference"], row["95 % interval"]) == (shown, "", "")
    assert claims_chart([judged], {"accuracy"}) == []


@pytest.mark.parametrize(
    ("of", "than", "verdict"),
    [
        ((12.3, 13.4), (2.3, 3.4), "undecided"),  # equal but for rounding: two show no spread
        ((11.0, 12.0, 13.0), (1.0, 2.0, 3.0), "confirmed"),
    ],
    ids=["two", "three"],
)
def test_equal_differences_need_three_pairs_for_a_verdict(of, than, verdict):
    assert Judged(CLAIM, "accuracy", of, than).verdict == verdict


def test_stages_without_a_common_seed_are_compared_unpaired():
    values = {"a": {0: 30.0, 1: 31.0, 2: 35.0}, "b": {3: 20.0, 4: 22.0}}
    scores = {name: {seed: {"accuracy": value} for seed, value in row.items()} for name, row in values.items()}
    (judged,) = judge([CLAIM], scores, {"a": "accuracy"})
    # variances 7 and 2: the squared error is 7/3 + 1, with (10/3)^2 / ((7/3)^2/2 + 1/1) = 2.98 degrees of freedom
    half = 4.303 * math.sqrt(7 / 3 + 1)
    assert judged.interval == pytest.approx((11 - half, 11 + half))
    row = dict(zip(COLUMNS, judged.row(), strict=True))
    assert (row["mean of"], row["difference"], row["verdict"]) == ("32 ± 2.6 (3)", "+11.00 (unpaired)", "confirmed")
    relative = CLAIM.model_copy(update={"relative": True})
    (judged,) = judge([relative], scores, {"a": "accuracy"})
    assert judged.differences == pytest.approx([100 * 11 / 21])


@pytest.mark.parametrize(
    ("lost", "shown", "verdict"),
    [
        ({}, "12.5 ± 1.3 (4)", "confirmed"),
        ({3: "missing", 1: "missing"}, "12 ± 1.4 (2 of 4 seeds)", "undecided"),
        ({2: "diverged"}, "not finite in 1 of 4", "undecided"),
    ],
    ids=["all", "missing", "diverged"],
)
def test_a_claim_is_undecided_until_all_seeds_are_in(lost, shown, verdict):
    rows = {seed: {"accuracy": 11.0 + seed} for seed in range(4)}
    of = {seed: None if seed in lost else row for seed, row in rows.items() if lost.get(seed) != "missing"}
    than = {seed: {"accuracy": seed + 0.1 * seed} for seed in rows}
    (judged,) = judge([CLAIM], {"a": of, "b": than}, {"a": "accuracy"}, {"a": range(4), "b": range(4)})
    row = dict(zip(COLUMNS, judged.row(), strict=True))
    assert (row["mean of"], row["verdict"]) == (shown, verdict)
    (judged,) = judge([CLAIM], {"a": {0: rows[0]}, "b": {1: rows[1]}}, {"a": "accuracy"}, {"a": [0, 1], "b": [0, 1]})
    assert judged.row()[COLUMNS.index("mean of")] == "0 of 2 seeds"


def test_a_score_that_no_run_has_is_named():
    scores = {name: {0: {"accuracy": 5.0}} for name in "ab"}
    (judged,) = judge([CLAIM.model_copy(update={"score": "acuracy"})], scores, {"a": "accuracy"})
    assert judged.row()[COLUMNS.index("mean of")] == "no score acuracy; did you mean 'accuracy'?"


def test_the_chart_has_the_intervals_of_claims_in_points():
    judged = [
        Judged(CLAIM.model_copy(update={"by": -2.0}), "accuracy", (5.0, 7.0, 12.0), (1.0, 2.0, 3.0)),
        Judged(CLAIM, "accuracy", (5.0,), (1.0,)),  # one seed has no interval
        Judged(CLAIM, "loss", (1.0, 2.0), (0.0, 0.0)),
        Judged(CLAIM.model_copy(update={"relative": True}), "accuracy", (1.0, 2.0), (1.0, 1.0)),
    ]
    (chart,) = claims_chart(judged, {"accuracy"})
    (row,) = chart.rows
    assert (row.name, row.value, row.needs) == (CLAIM.text, 6.0, -2.0)
    assert (row.low, row.high) == judged[0].interval
    assert chart.marks[row.mark] == judged[0].verdict
    assert claims_chart(judged[1:], {"accuracy"}) == []


def test_a_recipe_reports_its_claims_paired_by_seed(tmp_path):
    recipe = read_stages(write(tmp_path, TREE), [f"output={tmp_path / 'out'}"])
    report = train(recipe)
    table = report.tables[0]
    assert table.title == "Claims"
    rows = [dict(zip(table.columns, row)) for row in table.rows]
    scores = {
        stage.name: json.loads((stage.output / "report.json").read_text())["scores"]["test"]["accuracy"]
        for stage in recipe.stages
        if stage.group != "pretrain"
    }
    differences = [scores[f"vqa/seed-{seed}"] - scores[f"scratch/seed-{seed}"] for seed in (0, 1)]
    assert rows[0]["difference"] == f"{statistics.fmean(differences):+.2f}"
    assert rows[1]["score"] == "loss (lower is better)"
    assert rows[1]["verdict"] == "undecided"  # equal: neither better nor worse
    assert (tmp_path / "out" / "report.md").read_text().count("Pre-training improves VQA") == 1


def test_an_interrupted_recipe_reports_what_is_finished(tmp_path):
    tree = merge(TREE, {"stages": {"vqa": {"text": {"max_length": 100}}}})  # more than the model's: it fails
    with pytest.raises(ConfigError, match="max_length"):
        train(read_stages(write(tmp_path, tree), [f"output={tmp_path / 'out'}"]))
    page = (tmp_path / "out" / "report.md").read_text()
    assert "2 of 6 runs are finished" in page
    assert "not run" in page


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"c": {**CLAIMS["seeds"], "of": "vga"}}, r"claims\.c: there is no stage 'vga'; did you mean 'vqa'"),
        ({"c": {"text": "x", "of": "vqa"}}, r"claims\.c: than is missing"),
        ({"c": 3}, r"claims\.c must hold"),
        ({"c": {**CLAIMS["seeds"], "margin": 3}}, "unknown key 'margin'"),
        ({"c": {**CLAIMS["seeds"], "than": "pretrain"}}, "metric of vqa is accuracy, that of pretrain is loss"),
        ({"c": {"text": "x", "of": "pretrain", "than": "pretrain"}}, r"claims\.c: the higher loss .*; add lower: true"),
    ],
)
def test_claims_that_do_not_fit_are_refused(tmp_path, claims, message):
    with pytest.raises(ConfigError, match=message):
        read_stages(write(tmp_path, {**TREE, "claims": claims}))


def test_the_quick_form_shortens_every_stage_and_keeps_what_its_claims_need(tmp_path):
    stages = {
        "other": VQA,
        "pretrain": {"train": {"steps": None, "teraflops": 4}},
        "scratch": {"train": {"minutes": 8}},
    }
    tree = merge(TREE, {"output": "runs/r", "stages": stages})
    tree["quick"] = {"budget": 0.25, "seeds": [5], "claims": ["seeds"]}
    path = write(tmp_path, tree)
    recipe = read_stages(path, quick=True)
    assert [stage.name for stage in recipe.stages] == ["pretrain/seed-5", "vqa/seed-5", "scratch/seed-5"]
    trains = {stage.group: stage.config.train for stage in recipe.stages}
    assert (trains["pretrain"].steps, trains["pretrain"].teraflops) == (None, 1.0)
    assert (trains["scratch"].steps, trains["scratch"].minutes) == (1, 2.0)
    assert (str(recipe.output), len(recipe.claims)) == ("runs/r-quick", 1)
    assert len(read_stages(path).stages) == 8
    changed = read_stages(path, ["quick.seeds=[1,2]", "train.batch_size=2", "quick.claims=[]"], quick=True)
    assert len(changed.stages) == 8
    assert changed.stages[0].config.train.batch_size == 2
    with pytest.raises(ConfigError, match="no effect without the quick form"):
        read_stages(path, ["quick.budget=0.5"])
    with pytest.raises(ConfigError, match="no claim 'seed'; did you mean 'seeds'"):
        read_stages(path, ["quick.claims=[seed]"], quick=True)
    with pytest.raises(ConfigError, match="has no quick form"):
        read_stages(write(tmp_path, {**DEFAULTS, **VQA}), quick=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claims": {"odd": {"text": "x", "than": "vqa"}}}, r"claims\.odd: of is missing"),
        ({"claims": {"odd": "x"}}, r"claims\.odd must hold"),
        ({"claims": [1]}, "claims must hold"),
        ({"stages": [1]}, "stages must hold"),
        ({"stages": {"vqa": "x"}}, r"stages\.vqa must hold"),
        ({"defaults": "x"}, "defaults must hold"),
        ({"defaults": {**DEFAULTS, "train": {"steps": "many"}}}, r"train\.steps='many'"),
        ({"defaults": {**DEFAULTS, "train": "many"}}, r"train='many'"),
        ({"stages": {"pretrain": {"model": {"init": "stage:pretrain"}}}}, "is no earlier stage"),
    ],
)
def test_a_quick_form_of_what_is_malformed_is_refused(tmp_path, changes, message):
    chosen = ["odd"] if "odd" in changes.get("claims", {}) else ["seeds"]
    tree = merge({**TREE, "quick": {"budget": 0.5, "claims": chosen}}, changes)
    with pytest.raises(ConfigError, match=message):
        read_stages(write(tmp_path, tree), quick=True)


def test_a_recipe_of_one_run_has_no_quick_form(tmp_path):
    with pytest.raises(ConfigError, match="has no quick form"):
        read_stages(write(tmp_path, {**DEFAULTS, **VQA, "quick": {"budget": 0.5}}), quick=True)


def test_the_quick_form_keeps_the_stage_from_which_all_start(tmp_path):
    tree = merge(TREE, {"defaults": {"model": {"init": "stage:pretrain"}}})
    tree["stages"] = {
        "pretrain": merge(TREE["stages"]["pretrain"], {"model": {"init": None}}),
        "vqa": {**VQA, "model": {"preset": None}},
        "scratch": merge(VQA, {"model": {"init": None}}),
    }
    recipe = read_stages(write(tmp_path, {**tree, "quick": {"claims": ["seeds"]}}), quick=True)
    assert list(dict.fromkeys(stage.group for stage in recipe.stages)) == ["pretrain", "vqa", "scratch"]


def test_the_teacher_of_a_stage_may_be_an_earlier_stage(tmp_path):
    student = {"task": {"name": "pretraining", "mim_teacher": "stage:pretrain"}}
    path = write(tmp_path, {**TWO, "stages": {"pretrain": TWO["stages"]["pretrain"], "student": student}})
    recipe = read_stages(path, [f"output={tmp_path / 'out'}"])
    assert [(stage.after, stage.teacher) for stage in recipe.stages] == [("", ""), ("", "pretrain")]
    train(recipe)
    config = json.loads((tmp_path / "out" / "student" / "model" / "config.json").read_text())
    assert (config["mim_target"], config["mim_target_size"]) == ("features", config["hidden_size"])
    bad = merge(TWO, {"stages": {"pretrain": {"task": {"mim_teacher": "stage:vqa"}}}})
    with pytest.raises(ConfigError, match=r"task\.mim_teacher=stage:vqa is no earlier stage"):
        read_stages(write(tmp_path, bad))


@pytest.mark.parametrize(("name", "least"), [("claims-eve", 29), ("claims-vle", 40)])
def test_the_bundled_claims_can_be_read_in_both_forms(name, least):
    whole, quick = read_stages(name), read_stages(name, quick=True)
    assert len(whole.claims) >= least > len(quick.claims) > 10
    assert len(quick.stages) < len(whole.stages)
    assert all(len(stage.config.by_seed()) == 1 for stage in quick.stages)
    longest = max(stage.config.train.minutes or 0 for stage in whole.stages)
    assert longest <= 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("claims-eve", "[masked-vqa,pixels,pixels-than-codes,balance-load]"),
        ("claims-vle", "[types-q2a,one-image-pass]"),
    ],
)
def test_the_bundled_claims_train_in_their_quick_form(name, claims, tmp_path):
    short = ["data.train.count=300", "data.test.count=24", "tokenizer.samples=60", "train.steps=1", "optim.warmup=0"]
    sizes = ["train.batch_size=8", "evaluate.batch_size=8", "train.num_workers=0", "evaluate.num_workers=0"]
    changes = [f"output={tmp_path}", "quick.seeds=[0]", f"quick.claims={claims}", *short, *sizes]
    report = train(read_stages(name, changes, quick=True))
    table = report.tables[0]
    assert [row[table.columns.index("verdict")] for row in table.rows] == ["undecided"] * claims.count(",") + [
        "undecided"
    ]
    assert "not run" not in str(table.rows)
