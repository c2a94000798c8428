"""Recipes: the whole road in seconds, what is refused, what a run starts from, stages, and resuming."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from evle.config import dump_yaml, load_yaml, merge
from evle.errors import CheckpointError, ConfigError, DataError
from evle.recipes import find_recipe, listing, recipes
from evle.run import stages
from evle.run.config import RunConfig, read_recipe, read_stages
from evle.run.evaluation import evaluate
from evle.run.prepare import prepare
from evle.run.scoring import read_run
from evle.run.splits import DataConfig, as_list, below_root, read_split
from evle.run.training import train_run
from evle.tasks import TASKS
from evle.transforms.text import train_tokenizer
from micro import MICRO, SAMPLES, micro_run
from tars import caption_members, write_tar

SCENES = {"source": "scenes", "size": 24}
ROAD = {
    "title": "A small road",
    "defaults": {
        "model": {"preset": "eve-tiny", "overrides": MICRO},
        "tokenizer": {"vocab_size": 400, "reads": ["captions", "vqa"]},
        "data": {
            "train": {**SCENES, "split": "train", "count": 48},
            "val": {**SCENES, "split": "val", "count": 12},
            "test": {**SCENES, "split": "test", "count": 12},
        },
        "text": {"max_length": 24},
        "train": {"steps": 20, "batch_size": 8, "eval_every": 10},
        "evaluate": {"batch_size": 12, "examples": 2},
    },
    "stages": {
        "pretrain": {"task": {"name": "pretraining"}},
        "retrieval": {"task": {"name": "retrieval", "k_test": 3}, "model": {"init": "stage:pretrain"}},
        "vqa": {"task": {"name": "vqa"}, "model": {"init": "stage:pretrain"}},
    },
}


def write(path: Path, tree: dict) -> Path:
    path.write_text(dump_yaml(tree), encoding="utf-8")
    return path


def train(config: RunConfig, **options):
    samples = SAMPLES[config.task["name"]]()
    return stages.train(config, samples={"train": samples, "val": samples}, **options)


def test_the_whole_road_from_scenes_to_a_report(tmp_path):
    recipe = read_stages(write(tmp_path / "road.yaml", ROAD), [f"output={tmp_path / 'out'}"])
    said = []
    report = stages.train(recipe, on_stage=said.append)
    assert [table.title for table in report.tables] == [
        "Results",
        "pretraining: scores",
        "retrieval: scores",
        "vqa: scores",
    ]
    results = report.tables[0]
    assert results.columns == ["percent", "chance", "weights of pretrain"]
    assert ["vqa: accuracy", report.scores["vqa: chance"]["accuracy"], report.scores["vqa"]["accuracy"]] in results.rows
    assert any(line.startswith("vqa, accuracy: ") and "by chance" in line for line in report.summary)
    assert "## Scores" not in report.markdown()  # a table of all tasks would be mostly empty
    assert {"TR@1", "IR@10", "itc/TR@1"} <= report.scores["retrieval"].keys()
    assert 0 <= report.scores["vqa"]["accuracy"] <= 100
    assert report.scores["vqa: chance"]["accuracy"] > 0
    for stage in ("pretrain", "retrieval", "vqa"):
        for name in ("report.html", "report.json", "report.md", "config.yaml", "environment.json", "log.jsonl"):
            assert (tmp_path / "out" / stage / name).is_file(), (stage, name)
    assert (tmp_path / "out" / "report.html").is_file()

    # Again: nothing is trained; another split is scored from the run's folder alone.
    said.clear()
    stages.train(recipe, on_stage=said.append)
    assert all("finished before" in line for line in said)
    config = read_run(tmp_path / "out" / "vqa", ["data.test.split=val", "data.test.count=8"])
    other = evaluate(config, output=tmp_path / "other")
    assert other.scores.keys() == {"val", "chance"}  # what was read, not the name of the slot
    assert other.summary[0].startswith("accuracy on val of scenes: ")
    assert len((tmp_path / "other" / "predictions.jsonl").read_text().splitlines()) == 8
    assert read_run(tmp_path / "out" / "vqa", ["data.test.split=val"]).data.val is None  # nothing is chosen any more
    # The same data gives the same scores as at the end of training.
    same = evaluate(read_run(tmp_path / "out" / "vqa"), output=tmp_path / "same")
    assert same.scores["test"] == pytest.approx(report.scores["vqa"])
    assert same.scores["chance"] == pytest.approx(report.scores["vqa: chance"])

    # A changed setting is refused, not silently kept.
    changed = read_stages(tmp_path / "road.yaml", [f"output={tmp_path / 'out'}", "stages.vqa.train.steps=5"])
    with pytest.raises(ConfigError, match=r"train\.steps: 20 -> 5"):
        stages.train(changed)


@pytest.mark.parametrize(
    ("family", "name"), [("eve", "retrieval"), ("vle", "pretraining"), ("vle", "vqa"), ("vle", "vcr-qa2r")]
)
def test_an_interrupted_run_resumes_to_the_same_weights(family, name, tmp_path):
    from evle.engine.failures import Diverged

    changes = {"train": {"steps": 12, "save_every": 4}, "image": {"flip": 0.5}}
    if family == "vle":  # dropout too draws the same again
        changes["model"] = {"overrides": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}}
    whole = micro_run(tmp_path / "whole", name, changes, family)
    train(whole)
    cut = whole.model_copy(update={"output": str(tmp_path / "cut")})

    calls = 0
    collate = TASKS[name].collate_raw

    def failing(self, features):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise Diverged("the power went out")
        return collate(self, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TASKS[name], "collate_raw", failing)
        with pytest.raises(Diverged):
            train(cut)
    train(cut)
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_of_another_task_is_taken_as_far_as_it_goes(tmp_path):
    train(micro_run(tmp_path / "pre", "pretraining", {"train": {"steps": 2}}))
    config = micro_run(tmp_path / "vqa", "vqa", {"model": {"init": str(tmp_path / "pre")}, "image": {"size": 32}})
    loaded = prepare(config, samples={"train": SAMPLES["vqa"]()}).loaded
    assert loaded.new == {name for name in loaded.model.state_dict() if name.startswith("classifier.")}
    assert {name.split(".")[0] for name in loaded.unused} == {"decoder", "mlm_head"}
    assert loaded.resized == ["eve.image_embedding.position from 16 to 32 pixels"]
    before = load_file(tmp_path / "pre" / "model" / "model.safetensors")
    after = loaded.model.state_dict()
    assert torch.equal(after["eve.layers.0.attention.qkv.weight"], before["eve.layers.0.attention.qkv.weight"])
    assert after["eve.image_embedding.position"].shape == (17, 32)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_an_epoch_has_as_many_steps_however_a_step_is_cut(tmp_path, accumulation):
    # 22 samples, 8 per step: two steps; the six left over would make micro-batches, but no whole step.
    samples = [*SAMPLES["vqa"](), *SAMPLES["vqa"](), *SAMPLES["vqa"]()[:6]]
    changes = {"train": {"steps": None, "epochs": 3, "batch_size": 8, "accumulation": accumulation}}
    ready = prepare(micro_run(tmp_path, "vqa", changes), samples={"train": samples})
    assert ready.train.num_steps(ready.loader.num_batches) == 6
    assert sum(len(batch["labels"]) for batch in ready.loader.batches(0)) == 16


def test_other_answers_make_a_new_last_layer(tmp_path):
    train(micro_run(tmp_path / "one", "vqa", {"train": {"steps": 2}}))
    samples = SAMPLES["vqa"]()
    config = micro_run(tmp_path / "two", "vqa", {"model": {"init": str(tmp_path / "one")}})
    assert prepare(config, samples={"train": samples}).loaded.new == frozenset()
    import dataclasses

    other = [dataclasses.replace(sample, answers=(sample.answers[0] + "ish",)) for sample in samples]
    assert prepare(config, samples={"train": other}).loaded.new == {"classifier.3.weight", "classifier.3.bias"}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": {"preset": None}}, ConfigError, r"set model\.preset=NAME"),
        ({"model": {"preset": "eve-tinny"}}, ConfigError, "did you mean 'eve-tiny'"),
        ({"model": {"overrides": {"num_expert": 3}}}, ConfigError, "num_experts"),
        ({"model": {"init": "nowhere"}}, CheckpointError, "nowhere: no such"),
        ({"model": {"init": "weights.th"}}, CheckpointError, r"evle convert eve weights\.th FOLDER"),
        ({"task": {"name": "vqaa"}}, ConfigError, "did you mean 'vqa'"),
        (
            {"task": {"name": "retrieval"}, "model": {"overrides": {"objective_weights": {"itm": 0}}}},
            ConfigError,
            "k_test=0",
        ),
        ({"task": {"anwers": "x"}}, ConfigError, "unknown key 'task.anwers'; did you mean task.answers"),
        ({"text": {"max_length": 100}}, ConfigError, "more than the model's 64 positions"),
        ({"data": {"train": {"source": "scene"}}}, ConfigError, r"data\.train: .*did you mean 'scenes'"),
        ({"data": {"train": {"source": "folder"}}}, ConfigError, r"add data\.path=FOLDER"),
        ({"data": {"train": {"split": "train"}}}, ConfigError, r"data\.train\.source is missing"),
        ({"data": {}}, ConfigError, r"data\.train is missing"),
        ({"image": {"size": 30}}, ConfigError, "not a multiple of patch_size"),
        ({"tokenizer": {"path": "nowhere"}}, ConfigError, r"tokenizer\.path=nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(tmp_path, changes, kind, message):
    data = {"data": {"train": {"source": "scenes", "count": 8, "size": 24}}} if "data" not in changes else {}
    with pytest.raises(kind, match=message):
        prepare(micro_run(tmp_path / "run", "vqa", {**data, **changes}))
    assert not (tmp_path / "run").exists()


def test_choosing_on_test_data_is_refused(tmp_path):
    source = {"source": "scenes", "count": 8, "split": "test"}
    with pytest.raises(ConfigError, match="val reads the split 'test': the best weights would be chosen on test data"):
        micro_run(tmp_path, "vqa", {"data": {"val": source}})
    source["split"] = "val"
    with pytest.raises(ConfigError, match="val and test are the same data"):
        micro_run(tmp_path, "vqa", {"data": {"val": source, "test": source}})


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("retrieval", {"train": {"batch_size": 1}}),
        (
            "pretraining",
            {"train": {"batch_size": 4, "accumulation": 4}, "model": {"overrides": {"objectives": ["mlm", "itm"]}}},
        ),
        ("pretraining", {"train": {"batch_size": 1}, "model": {"overrides": {"objectives": ["mlm", "itc"]}}}),
    ],
)
def test_contrast_over_single_pairs_is_refused(tmp_path, task, changes):
    with pytest.raises(ConfigError, match=r"compare the pairs of a batch that holds a single pair"):
        prepare(micro_run(tmp_path, task, changes), samples={"train": SAMPLES[task]()})


def test_contrast_alone_needs_two_pairs_in_a_step_not_in_a_micro_batch(tmp_path):
    changes = {"train": {"batch_size": 4, "accumulation": 4}, "model": {"overrides": {"objectives": ["mlm", "itc"]}}}
    prepare(micro_run(tmp_path, "pretraining", changes), samples={"train": SAMPLES["pretraining"]()})


def test_a_single_pair_is_enough_for_masked_signals_and_questions(tmp_path):
    for task, objectives in (("pretraining", {"objectives": ["mim", "mlm"]}), ("vqa", {})):
        changes = {"train": {"batch_size": 1}, "model": {"overrides": objectives}}
        prepare(micro_run(tmp_path, task, changes), samples={"train": SAMPLES[task]()})
    with pytest.raises(ConfigError, match="1 training samples"):
        prepare(micro_run(tmp_path, "retrieval"), samples={"train": SAMPLES["retrieval"]()[:1]})


def test_a_split_without_samples_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match="the split val holds no samples"):
        prepare(micro_run(tmp_path, "vqa"), samples={"train": SAMPLES["vqa"](), "val": []})


def test_another_tokenizer_than_that_of_the_weights_is_refused(tmp_path):
    train(micro_run(tmp_path / "run", "vqa", {"train": {"steps": 1}}))
    words = ["the very red apple", "a green frog", "snow and coal", "sky"] * 3
    train_tokenizer(words, 400).save_pretrained(tmp_path / "other")
    init = {"init": str(tmp_path / "run"), "preset": None, "overrides": {}}
    changes = {"model": {**init}, "tokenizer": {"path": str(tmp_path / "other"), "vocab_size": None}}
    tree = merge(micro_run(tmp_path / "next", "vqa").plain(), changes) | {"model": init}
    with pytest.raises(ConfigError, match=r"not the tokenizer that .*run was trained with \(\d+ of \d+ tokens differ"):
        prepare(RunConfig.build(tree, "test"), samples={"train": SAMPLES["vqa"]()})
    tree["tokenizer"]["path"] = str(tmp_path / "run" / "model")
    prepare(RunConfig.build(tree, "test"), samples={"train": SAMPLES["vqa"]()})


def test_a_tokenizer_larger_than_the_weights_know_is_refused(tmp_path):
    train(micro_run(tmp_path / "small", "vqa", {"train": {"steps": 1}, "tokenizer": {"vocab_size": 270}}))
    train(micro_run(tmp_path / "large", "retrieval", {"train": {"steps": 1}}))
    changes = {"model": {"init": str(tmp_path / "small")}, "tokenizer": {"path": str(tmp_path / "large" / "model")}}
    with pytest.raises(ConfigError, match=r"not the tokenizer that .*small was trained with"):
        prepare(micro_run(tmp_path / "run", "vqa", changes), samples={"train": SAMPLES["vqa"]()})


def test_a_preset_of_another_size_than_the_weights_is_refused(tmp_path):
    train(micro_run(tmp_path / "one", "vqa", {"train": {"steps": 1}}))
    changes = {"model": {"init": str(tmp_path / "one"), "overrides": {"hidden_size": 64}}}
    with pytest.raises(CheckpointError, match="has shape"):
        prepare(micro_run(tmp_path / "two", "vqa", changes), samples={"train": SAMPLES["vqa"]()})
    tree = micro_run(tmp_path / "two", "vqa", changes).plain()
    tree["model"] = {"init": str(tmp_path / "one"), "preset": "eve-small"}
    with pytest.raises(ConfigError, match=r"model\.preset=eve-small has"):
        prepare(RunConfig.build(tree, "test"), samples={"train": SAMPLES["vqa"]()})


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {"a": {"task": {"name": "vqa"}, "model": {"init": "stage:b"}}, "b": {"task": {"name": "vqa"}}},
            "no earlier stage",
        ),
        ({"a": {"task": {"name": "vqa"}, "optim": {"lrr": 1}}}, "stage a: .*did you mean optim.lr"),
        ({}, "at least one"),
    ],
)
def test_stages_that_cannot_work_are_refused_before_the_first_runs(tmp_path, stages, message):
    tree = {"defaults": {"train": {"steps": 1}}, "stages": stages}
    with pytest.raises(ConfigError, match=message):
        read_stages(write(tmp_path / "r.yaml", tree))


def test_a_stage_runs_again_after_the_stage_it_starts_from(tmp_path):
    import shutil

    two = {**ROAD, "stages": {name: ROAD["stages"][name] for name in ("pretrain", "vqa")}}
    path = write(tmp_path / "r.yaml", two)
    recipe = read_stages(path, [f"output={tmp_path / 'out'}", "train.steps=2"])
    stages.train(recipe)
    shutil.rmtree(tmp_path / "out" / "pretrain")
    said = []
    stages.train(recipe, on_stage=said.append)
    assert len(said) == 2
    assert not any("finished before" in line for line in said)


@pytest.mark.parametrize("name", recipes())
def test_the_recipes_that_come_along_are_valid(name):
    tree = load_yaml(find_recipe(name))
    assert tree["title"]
    for stage in read_stages(name).stages:
        assert RunConfig.build(json.loads(json.dumps(stage.config.plain())), "again") == stage.config


def test_the_listing_says_what_data_length_and_needs():
    small, large = ({row[0]: row[1:] for row in table.rows} for table in listing())
    assert small.keys() | large.keys() == recipes().keys()
    published = ("eve-base", "eve-large", "meter-base", "vle-base", "vle-large")
    assert {name for name in recipes() if name.startswith(published)} == large.keys(), "those with needs"
    assert large["eve-large-pretrain-16m"][:2] == ["coco, visual-genome, sbu, cc3m, cc12m", "280,000 steps x 2048"]
    assert large["eve-base-coco-retrieval"][1] == "10 epochs x 256"
    assert small["quickstart"][1:] == ["scenes", "5 runs"]
    assert all(row[0] for row in small.values()), "each has a title"


def test_a_tokenizer_may_be_trained_on_some_samples_spread_over_all(tmp_path):
    class Counted(list):
        def __getitem__(self, place):
            read.append(place)
            return super().__getitem__(place)

    read: list[int] = []
    samples = Counted(SAMPLES["vqa"]())
    config = micro_run(tmp_path, "vqa", {"tokenizer": {"samples": 3}})
    ready = prepare(config, samples={"train": samples})
    assert read[:3] == [0, 2, 5]  # of eight samples, before the answers of all are counted
    assert ready.task.processor.tokenizer.mask_token_id is not None


def test_paths_below_the_root_are_joined_to_it_and_others_stay():
    held_out = ["$root/coco/a.json", "other/b.json"]
    assert below_root(held_out, "/data") == ["/data/coco/a.json", "other/b.json"]
    assert [below_root(value, "corpora") for value in ("$root", "$rooted/a", "x/$root", 3, None)] == [
        "corpora",
        "$rooted/a",
        "x/$root",
        3,
        None,
    ]
    data = read_recipe("eve-base-pretrain", ["data.root=/nowhere", "data.train.3.path=own"]).data
    with pytest.raises(DataError, match=r"^/nowhere/coco"):
        read_split(data, "train", "captions")
    with pytest.raises(DataError, match=r"^own"):
        read_split(data.model_copy(update={"train": as_list(data.train)[3]}), "train", "captions")
    with pytest.raises(ConfigError, match=r"data\.val: \$root/coco is below a root that is not given: set data\.root="):
        read_split(data.model_copy(update={"root": None}), "val", "captions")
    with pytest.raises(ConfigError, match=r"data\.root=photos has no effect: no source here has a path that begins"):
        read_recipe("eve-base-vqa", ["data.root=photos"])


def test_a_data_path_that_nothing_reads_is_refused_with_what_to_set_instead(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path=photos has no effect.*data\.train\.0\.path=corpora/coco.*") as e:
        read_recipe("eve-base-pretrain", ["data.path=photos"])
    assert "data.train.3.path=corpora/cc3m" in str(e.value)
    assert "data.val.path=corpora/coco" in str(e.value)
    assert "set data.root for all, or" in str(e.value)
    with pytest.raises(ConfigError, match=r"data\.path=photos has no effect: no source here reads a folder .*scenes"):
        read_stages("quickstart", ["data.path=photos"])

    # Where one stage of several reads it, or one source, it has its effect.
    mixed = {**ROAD, "stages": {**ROAD["stages"], "own": {"task": {"name": "vqa"}}}}
    mixed["stages"]["own"] = {"task": {"name": "vqa"}, "data": {"train": {"source": "folder", "size": None}}}
    assert read_stages(write(tmp_path / "mixed.yaml", mixed), ["data.path=photos"]).stages[-1].config.data.path

    folder = tmp_path / "run"
    folder.mkdir()
    data = {split: {"source": "folder", "path": "own", "split": split} for split in ("train", "val", "test")}
    write(folder / "config.yaml", micro_run(folder, "retrieval", {"data": {**data, "path": "photos"}}).plain())
    assert read_run(folder, ["data.test.split=val"]).data.path == "photos"  # it stood there when it ran
    with pytest.raises(ConfigError, match=r"data\.path=other has no effect: set data\.test\.path=own"):
        read_run(folder, ["data.path=other"])


def test_a_split_without_samples_is_named_with_its_place(tmp_path):
    write_tar(tmp_path / "00000.tar", caption_members(0))
    found = []
    for split in ("train", "val", "test"):  # one sample falls into one of the three
        data = DataConfig(path=str(tmp_path), test={"source": "shards", "split": split})
        try:
            read_split(data, "test", "captions")
        except DataError as error:
            found.append(f"data.test holds no samples (shards {tmp_path} {split}); check its path" in str(error))
    assert found == [True, True]


def test_sources_that_share_keys_are_learned_from_together_and_scored_apart(tmp_path):
    """A model's word on one image would be taken for its word on the other of that name."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rows = [{"image": f"{each}.png", "caption": f"{name} {each}"} for each in ("same", name)]
        (tmp_path / name / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = [{"source": "folder", "path": str(tmp_path / name)} for name in ("a", "b")]
    data = DataConfig(train=both, test=both, val=[{**both[0], "weight": 2}])
    assert len(read_split(data, "train", "captions")) == len(read_split(data, "val", "captions")) == 4
    with pytest.raises(DataError, match=r"data\.test: the key 'same\.png' appears in several of its sources \(folder"):
        read_split(data, "test", "captions")


@pytest.mark.parametrize(("name", "kind"), [("vqa", "pad"), ("pretraining", "mask")])
def test_a_tokenizer_without_a_token_that_is_needed_is_one_line(name, kind, tmp_path):
    tokenizer = train_tokenizer(["a red apple", "a green frog"], 300)
    setattr(tokenizer, f"{kind}_token", None)
    tokenizer.save_pretrained(tmp_path / "tokens")
    config = micro_run(tmp_path / "run", name, {"tokenizer": {"path": str(tmp_path / "tokens")}})
    with pytest.raises(ConfigError, match=f"tokens: the tokenizer has no {kind} token; name it as {kind}_token in its"):
        prepare(config, samples={"train": SAMPLES[name]()})


@pytest.mark.parametrize("family", ["eve", "vle"])
def test_of_two_sizes_of_images_the_one_that_counts_is_said(family, tmp_path):
    """The micro models' overrides say 16."""
    notes = {}
    for size in (16, 32):
        config = micro_run(tmp_path, "vqa", {"image": {"size": size}}, family)
        notes[size] = "\n".join(prepare(config, samples={"train": SAMPLES["vqa"]()}).notes)
    assert "using image.size=32; image_size=16 of model.overrides is ignored" in notes[32]
    assert "is ignored" not in notes[16]


def test_a_run_of_an_earlier_version_resumes_with_the_defaults_of_what_came_after(tmp_path):
    config = micro_run(tmp_path / "run", "vqa", {"train": {"steps": 2}})
    train(config)
    file = tmp_path / "run" / "config.yaml"
    before = load_yaml(file)
    del before["train"]["choose_from"], before["image"]["bend"]
    write(file, before)
    (tmp_path / "run" / "report.json").unlink()
    train(config)
    del before["optim"]["lr"]
    write(file, before)
    with pytest.raises(ConfigError, match=r"a finished run of another configuration \(optim\.lr: .* -> 0\.005\)"):
        train(config)


@pytest.mark.parametrize(
    ("machines", "words"),
    [(2, "output=memory://bucket/run: .* choose a folder that all machines share"), (1, r"data\.train is missing")],
)
def test_parts_of_a_checkpoint_are_not_scattered_over_machines(machines, words, monkeypatch, tmp_path):
    monkeypatch.setattr("evle.run.training.num_machines", lambda: machines)
    monkeypatch.setenv("EVLE_CACHE", str(tmp_path))
    changes = {"output": "memory://bucket/run", "train": {"shard_checkpoints": True}}
    with pytest.raises(ConfigError, match=words):
        train_run(micro_run(tmp_path, "vqa", changes))


def test_images_of_test_that_are_trained_on_are_reported(tmp_path):
    for number, colour in enumerate(("red", "blue", "green", "white")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{number}.png")
    rows = [("0.png", "train"), ("1.png", "train"), ("./1.png", "test"), ("2.png", "test"), ("3.png", "val")]
    (tmp_path / "captions.csv").write_text(
        "image,caption,split\n" + "".join(f"{name},a thing {n},{split}\n" for n, (name, split) in enumerate(rows))
    )
    data = {split: {"source": "folder", "path": str(tmp_path), "split": split} for split in ("train", "val", "test")}
    notes = prepare(micro_run(tmp_path / "run", "retrieval", {"data": data})).notes
    shared = [note for note in notes if "also in train" in note]
    assert shared == ["1 of 2 images of test are also in train, which makes its scores too good"]


def test_captions_that_are_all_the_same_are_refused(tmp_path):
    own = SAMPLES["retrieval"]()
    samples = [replace(sample, captions=("a photo",), match_id="a photo") for sample in own]
    with pytest.raises(ConfigError, match=r"itc and itm would compare images whose captions are all the same \('a ph"):
        prepare(micro_run(tmp_path, "retrieval"), samples={"train": samples})
    prepare(micro_run(tmp_path, "retrieval"), samples={"train": [*samples[:-1], own[-1]]})
