"""`train`: one verb for recipes of one or several stages, and one rule for what is resumed, kept and refused."""

import json
import statistics

import pytest

import evle
from evle.config import load_yaml, merge
from evle.engine.failures import Diverged
from evle.engine.lock import locked
from evle.errors import ConfigError, EvleError
from evle.run.config import read_recipe, read_stages
from evle.run.dry_run import rehearse_stages
from evle.run.splits import DataConfig, require_paths
from evle.run.stages import _is_finished, _to_run, train
from micro import SAMPLES, micro_run
from staged import DEFAULTS, TWO, VQA, write


def test_a_recipe_of_one_run_has_it_at_the_output_itself(tmp_path):
    out = tmp_path / "out"
    trees = {"bare": {**DEFAULTS, **VQA}, "staged": {"defaults": DEFAULTS, "stages": {"only": VQA}}}
    for name, tree in trees.items():
        report = train(write(tmp_path, tree), [f"output={out / name}"])
        assert 0 <= report.scores["test"]["accuracy"] <= 100
        assert (out / name / "model" / "config.json").is_file()
        assert (out / name / "report.html").is_file()
        assert not (out / name / "only").exists()


def test_an_unfinished_run_is_resumed_and_a_finished_or_different_one_refused(tmp_path):
    config = micro_run(tmp_path / "run", "vqa", {"train": {"steps": 2}})
    samples = {"train": SAMPLES["vqa"]()}
    train(config, samples=samples)
    other = config.model_copy(update={"seed": 3})
    with pytest.raises(
        ConfigError, match=r"finished run of this configuration \(2 steps\); score it with .*--overwrite"
    ):
        train(config, samples=samples)
    with pytest.raises(ConfigError, match=r"finished run of another configuration \(seed: 0 -> 3\).*--overwrite"):
        train(other, samples=samples)
    (tmp_path / "run" / "report.json").unlink()
    with pytest.raises(ConfigError, match=r"holds a.*run.* of another configuration \(seed: 0 -> 3\)"):
        train(other, samples=samples)
    train(config, samples=samples)
    assert len(json.loads((tmp_path / "run" / "environment.json").read_text())["resumed"]) == 1
    train(other, samples=samples, overwrite=True)
    assert load_yaml(tmp_path / "run" / "config.yaml")["seed"] == 3


def test_what_is_refused_is_refused_before_the_data_is_read(tmp_path):
    config = micro_run(tmp_path / "run", "vqa", {"train": {"steps": 2}})
    train(config, samples={"train": SAMPLES["vqa"]()})
    with pytest.raises(ConfigError, match="finished run"):
        train(config, samples={"train": None})  # type: ignore[dict-item]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_lives_is_refused(tmp_path, overwrite):
    config = micro_run(tmp_path / "run", "vqa", {"train": {"steps": 2}})
    with locked(tmp_path / "run"), pytest.raises(ConfigError, match="already training a run in it"):
        train(config, samples={"train": SAMPLES["vqa"]()}, overwrite=overwrite)


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(EvleError):
        train(micro_run(tmp_path / "run", "vqa", {"model": {"init": "nowhere", "preset": None}}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"source": "nlvr", "path": None}, "needs a folder: add stages.second.data.test.path=FOLDER"),
        ({"source": "folder"}, "needs a folder: add data.path=FOLDER"),
        ({"source": "folder", "path": "nowhere"}, "data.test of the stage second: nowhere: no such file or folder"),
    ],
)
def test_data_that_a_later_stage_lacks_is_missed_before_the_first_is_trained(tmp_path, test, message):
    tree = {"defaults": DEFAULTS, "stages": {"first": VQA, "second": merge(VQA, {"data": {"test": None}})}}
    tree["stages"]["second"]["data"]["test"] = test
    with pytest.raises(EvleError, match=message):
        train(write(tmp_path, tree), [f"output={tmp_path / 'out'}"])
    assert not (tmp_path / "out" / "first").exists()


@pytest.mark.parametrize("path", ["cc3m/{00000..00331}.tar", "cc3m/*.tar", "s3://bucket/cc3m", ["a.tar", "b.tar"]])
def test_patterns_lists_and_urls_of_shards_are_left_to_their_reader(path):
    require_paths(DataConfig(train={"source": "shards", "path": path}), "pretrain")


def test_overwrite_runs_every_stage_again(tmp_path):
    recipe = read_stages(write(tmp_path, TWO), [f"output={tmp_path / 'out'}"])
    train(recipe)
    lines: list[str] = []
    train(recipe, overwrite=True, on_stage=lines.append)
    assert lines == [f"[1/2] pretrain: {tmp_path}/out/pretrain", f"[2/2] vqa: {tmp_path}/out/vqa"]


def test_a_replacement_that_stops_halfway_leaves_no_old_run_that_passes_for_a_new_one(tmp_path):
    recipe = read_stages(write(tmp_path, TWO), [f"output={tmp_path / 'out'}"])
    train(recipe)

    def stop_at_the_second(line: str) -> None:
        if line.startswith("[2/2]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, overwrite=True, on_stage=stop_at_the_second)
    summary = json.loads((tmp_path / "out" / "report.json").read_text())["summary"]
    assert "1 of 2 runs are finished" in summary
    lines: list[str] = []
    train(recipe, on_stage=lines.append)
    assert lines == ["[1/2] pretrain: finished before, kept", f"[2/2] vqa: {tmp_path}/out/vqa"]
    environment = json.loads((tmp_path / "out" / "vqa" / "environment.json").read_text())
    assert "resumed" not in environment  # started again, not resumed at its end


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_diverges_ends_neither_the_others_nor_their_report(tmp_path, jobs):
    wild = {**VQA, "optim": {"lr": 1e38, "warmup": 0, "schedule": "constant"}, "train": {"steps": 4}}
    stages = {"wild": wild, "after": {**VQA, "model": {"init": "stage:wild"}}, "calm": VQA}
    claims = {"one": {"text": "Wild is better", "of": "after", "than": "calm"}}
    path, out = write(tmp_path, {"defaults": DEFAULTS, "stages": stages, "claims": claims}), tmp_path / "out"
    named = r"diverged: wild; skipped, because they start from these: after"
    lines: list[str] = []
    with pytest.raises(Diverged, match=rf"{named}; the report has .*; lower optim\.lr"):
        train(path, [f"output={out}"], jobs=jobs, on_stage=lines.append)
    assert any(line.startswith("[1/3] wild: diverged") for line in lines)
    assert json.loads((out / "wild" / "status.json").read_text())["state"] == "diverged"
    assert ((out / "calm" / "report.html").is_file(), (out / "after").exists()) == (True, False)
    page = (out / "report.md").read_text()
    assert all(words in page for words in ("1 of 3 runs are finished", named, "not finite in 1 of 1"))
    lines.clear()
    with pytest.raises(Diverged, match=named):
        train(path, [f"output={out}"], jobs=jobs, on_stage=lines.append)
    assert lines == [
        "[1/3] wild: diverged before, kept",
        "[3/3] calm: finished before, kept",
        "[2/3] after: skipped, because a run that it reads diverged",
    ]
    if jobs == 1:  # changed settings start it again
        train(path, [f"output={out}", "stages.wild.optim.lr=1e-4"])
        assert (out / "after" / "report.html").is_file()


def test_a_pair_of_stages_is_scored_again_where_the_recipe_names_another_one(tmp_path):
    q2a, qa2r = {"task": {"name": "vcr-q2a"}}, {"task": {"name": "vcr-qa2r"}}
    stages = {"q2a": q2a, "other-q2a": q2a, "qa2r": qa2r}

    def with_pair(first):
        tree = {"defaults": DEFAULTS, "stages": stages, "vcr": {"both": [first, "qa2r"]}}
        return read_stages(write(tmp_path, tree), [f"output={tmp_path / 'out'}"])

    (scored,) = with_pair("q2a").joint
    scored.output.mkdir(parents=True)
    models = {"q2a": str(scored.q2a.output), "qa2r": str(scored.qa2r.output)}
    (scored.output / "report.json").write_text(json.dumps({"provenance": {"models": models}}))
    (other,) = with_pair("other-q2a").joint
    assert (_is_finished(scored), _is_finished(other)) == (True, False)
    assert _to_run(with_pair("other-q2a"), overwrite=False)["both"] is True  # its report counts no longer


def test_samples_stand_in_for_those_of_one_stage_only(tmp_path):
    with pytest.raises(ConfigError, match="the recipe has several"):
        train(write(tmp_path, TWO), samples={"train": SAMPLES["vqa"]()})


def test_a_stage_with_seeds_runs_once_per_seed_and_reports_mean_and_spread(tmp_path):
    tree = merge(TWO, {"stages": {"pretrain": {"seeds": [0, 7]}, "vqa": {"seeds": [7, 0]}}})
    path = write(tmp_path, tree)
    recipe = read_stages(path, [f"output={tmp_path / 'out'}"])
    assert [stage.name for stage in recipe.stages] == ["pretrain/seed-0", "pretrain/seed-7", "vqa/seed-7", "vqa/seed-0"]
    assert [stage.after for stage in recipe.stages] == ["", "", "pretrain/seed-7", "pretrain/seed-0"]
    report = train(recipe)
    found = [
        json.loads((tmp_path / "out" / "vqa" / f"seed-{seed}" / "report.json").read_text())["scores"]["test"][
            "accuracy"
        ]
        for seed in (0, 7)
    ]
    assert report.scores["vqa"]["accuracy"] == pytest.approx(statistics.fmean(found))
    assert report.scores["vqa: standard deviation"]["accuracy"] == pytest.approx(statistics.stdev(found))
    by_seed = next(table for table in report.tables if table.title == "vqa: by seed")
    assert by_seed.columns == ["score", "seed-7", "seed-0", "mean", "standard deviation"]
    assert any("±" in line for line in report.summary)
    configs = [load_yaml(tmp_path / "out" / "vqa" / f"seed-{seed}" / "config.yaml") for seed in (0, 7)]
    assert [(each["seed"], each["seeds"]) for each in configs] == [(0, []), (7, [])]


def test_a_recipe_of_one_run_takes_seeds_too(tmp_path):
    report = train(write(tmp_path, {**DEFAULTS, **VQA}), [f"output={tmp_path / 'out'}", "seeds=[1,2]"])
    assert "out: standard deviation" in report.scores
    assert (tmp_path / "out" / "seed-2" / "report.html").is_file()
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"pretrain": {"seeds": [0, 1]}}, r"stage vqa: model.init=stage:pretrain has seeds=\[0, 1\]; give"),
        ({"vqa": {"seeds": [1, 1]}}, "a seed is repeated"),
        ({"vqa": {"seeds": [-1]}}, "seeds.0=-1"),
        ({"vqa": {"output": "there"}}, "vqa.output has no effect"),
        ({"a/b": VQA}, "is not a valid folder name"),
        ({"vqa": [1]}, "must hold `key: value` lines"),
    ],
)
def test_stages_that_do_not_fit_are_refused(tmp_path, stages, message):
    with pytest.raises(ConfigError, match=message):
        read_stages(write(tmp_path, merge(TWO, {"stages": stages})))


def test_a_dry_run_of_stages_tries_each_with_what_the_earlier_one_would_give(tmp_path):
    recipe = read_stages(write(tmp_path, TWO), [f"output={tmp_path / 'out'}"])
    result = rehearse_stages(recipe)
    lines = "\n".join(result.lines)
    assert result.missing == []
    assert lines.index("pretrain:\n") < lines.index("vqa:\n")
    assert "EVEForVQA, " in lines
    assert "stage:pretrain (untrained here)" in lines
    assert "that of model.init" in lines
    assert lines.count("first losses: ") == 2
    assert not (tmp_path / "out").exists()
    tree = merge(TWO, {"stages": {"vqa": {"text": {"max_length": 100}}}})
    with pytest.raises(ConfigError, match=r"stage vqa: text\.max_length=100 is more than the model's"):
        rehearse_stages(read_stages(write(tmp_path, tree)))


def test_a_dry_run_says_of_a_stage_that_it_could_not_be_tried(tmp_path):
    tree = merge(TWO, {"stages": {"pretrain": {"tokenizer": {"path": "nowhere"}}}})
    result = rehearse_stages(read_stages(write(tmp_path, tree)))
    assert any(line.startswith("pretrain: tokenizer.path=nowhere") for line in result.missing)
    assert any(line.startswith("  not tried: it reads pretrain") for line in result.lines)


def test_the_door_of_the_package_takes_a_name_a_file_or_a_configuration(tmp_path):
    assert evle.train is train
    config = read_recipe(write(tmp_path, {**DEFAULTS, **VQA}), [f"output={tmp_path / 'out'}"])
    report = evle.train(config, ["train.steps=1"])
    assert "1 steps of 8 samples" in "\n".join(report.summary)
    with pytest.raises(ConfigError, match="there is no recipe 'quikstart'; did you mean 'quickstart'"):
        evle.train("quikstart")
