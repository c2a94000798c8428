"""The published recipes: their numbers are the published ones, full-size models are built from them, and they run as
they stand on the corpora's official files in miniature.
"""

import inspect
import re
from pathlib import Path

import pytest
import torch

import corpora
import reasoning_corpora
from evle.config import apply_overrides, load_yaml, merge
from evle.data.images import open_image
from evle.data.sources import SOURCES
from evle.engine.optim import build_optimizer
from evle.recipes import find_recipe, recipes
from evle.run.config import RunConfig, read_recipe, task_class
from evle.run.splits import as_list, read_split
from evle.run.stages import train
from evle.run.weights import CONFIGS
from micro import SMALLEST
from tars import caption_members, write_tar

PUBLISHED = [name for name in recipes() if re.match("(eve|vle)-(base|large)-", name)]

# EVE: paper, section 4.1, and the released fine-tuning code: image, batch, lr, lr_mult, schedule, warm-up, clip.
EVE_PRETRAINING = {"base": (224, 2048, 5e-4, 480_000), "large": (224, 2048, 2e-4, 280_000)}
EVE_TUNING = {
    "coco-retrieval": (384, 256, {"base": 3e-5, "large": 5e-5}, 10, "linear", 0.1, 1.0),
    "flickr-retrieval": (384, 128, {"base": 1e-5, "large": 1e-5}, 5, "linear", 0.1, 1.0),
    "vqa": (480, 128, {"base": 3e-5, "large": 3e-5}, 10, "linear", 0.1, 3.0),
    "nlvr2": (384, 128, {"base": 3.5e-5, "large": 3.5e-5}, 15, "cosine", 0.2, 3.0),
}
# VLE: README and released script: lr, batches that were used, epochs, tokens, multiplier of the head.
VLE_TUNING = {
    "vqa": (7e-6, (256, 512), 10, 50, 50),
    "vcr-q2a": (1e-5, (128,), 5, 80, 50),
    "vcr-qa2r": (1e-5, (128,), 5, 80, 50),
}


def split_name(name: str) -> tuple[str, str, str]:
    family, size, rest = name.split("-", 2)
    return family, size, rest


def test_every_family_size_and_task_has_its_recipe():
    wanted = {f"eve-{size}-{task}" for size in ("base", "large") for task in ("pretrain", *EVE_TUNING)}
    wanted |= {f"vle-{size}-{task}" for size in ("base", "large") for task in ("pretrain", *VLE_TUNING)}
    assert set(PUBLISHED) == wanted | {"eve-large-pretrain-16m"}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("eve")])
def test_eves_numbers_are_the_published_ones(name):
    _, size, task = split_name(name)
    config = read_recipe(name)
    optim, train = config.optim, config.train
    assert (config.image.scale, config.image.flip, config.text.max_length) == ((0.5, 1.0), 0.5, 40)
    if task.startswith("pretrain"):
        assert config.task == {"name": "pretraining", "image_mask_ratio": 0.75, "text_mask_ratio": 0.5}
        assert config.tokenizer.vocab_size == 64_000
        pixels = CONFIGS["eve"].from_preset(f"eve-{size}").image_size
        assert (pixels, train.batch_size, optim.lr, train.steps) == EVE_PRETRAINING[size]
        return
    pixels, batch, lr, mult, schedule, warmup, clip = EVE_TUNING[task]
    assert (config.image.size, train.batch_size, optim.lr, optim.lr_mult) == (pixels, batch, lr[size], mult)
    assert (optim.schedule, optim.warmup, optim.clip, train.epochs) == (schedule, warmup, clip, 10)
    assert (optim.betas, optim.eps, optim.weight_decay) == ((0.9, 0.98), 1e-8, 0.01)
    augmented = (config.image.color_jitter, config.image.rand_augment)
    color, rand = ((0.4, 0.4, 0.4), None), ((0.0, 0.0, 0.0), (2, 7))
    assert augmented == (color if "retrieval" in task else rand)
    assert config.task.get("k_test", 128) == 128
    assert config.task.get("keep_sides", True) == (task == "vqa")  # sides are kept for VQA alone


def test_meters_numbers_are_those_of_its_code():
    pretrain, vqa = read_recipe("meter-base-pretrain"), read_recipe("meter-base-vqa")
    for config in (pretrain, vqa):
        optim = config.optim
        assert (optim.schedule, optim.power, optim.warmup, optim.betas, optim.eps) == (
            "linear",
            1,
            0.1,
            (0.9, 0.98),
            1e-8,
        )
        assert (optim.weight_decay, optim.lr_mult_patterns["cross_modal"], config.text.max_length) == (0.01, 5, 50)
    assert (pretrain.train.steps, pretrain.train.batch_size, pretrain.optim.lr, pretrain.image.size) == (
        100_000,
        4096,
        1e-5,
        288,
    )
    assert (pretrain.task["text_mask_ratio"], pretrain.task["whole_words"]) == (0.15, False)
    assert (vqa.train.epochs, vqa.train.batch_size, vqa.optim.lr, vqa.image.size) == (10, 512, 5e-6, 576)
    assert vqa.optim.lr_mult_patterns["vqa_classifier"] == 50


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("vle")])
def test_vles_numbers_are_the_published_ones(name):
    _, size, task = split_name(name)
    config = read_recipe(name)
    optim, train = config.optim, config.train
    assert not config.text.clean  # the tokenizer is cased, the release cleans nothing
    assert (optim.schedule, optim.warmup, optim.betas, optim.eps) == ("linear", 0.1, (0.9, 0.98), 1e-8)
    assert optim.weight_decay == 0.01
    assert optim.lr_mult_patterns["cross_modal"] == 5
    if task == "pretrain":
        assert (train.steps, train.batch_size, optim.lr, config.image.size) == (25_000, 2048, 1e-5, 224)
        assert (config.task["text_mask_ratio"], config.task["whole_words"], config.text.max_length) == (0.15, True, 50)
        assert config.model.overrides["objectives"] == ["mlm", "itm", "mpc", "pbc"]
        return
    lr, batches, epochs, tokens, head = VLE_TUNING[task]
    assert (optim.lr, train.epochs, config.text.max_length) == (lr, epochs, tokens)
    assert train.batch_size in batches
    assert head in optim.lr_mult_patterns.values()
    assert (config.image.scale, config.image.flip, optim.clip) == ((1.0, 1.0), 0.0, 0.0)  # as the released script
    assert config.image.framing == ("centre" if task == "vqa" else "whole")
    if task == "vqa":
        assert config.image.size == {"base": 576, "large": 504}[size]
        assert config.task["min_count"] == 9


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_full_size_model_is_built_and_every_learning_rate_group_has_members(name):
    family, size, task = split_name(name)
    config = read_recipe(name)
    start = CONFIGS[family].from_preset(f"{family}-{size}", **config.model.overrides)
    changes = {"image_size": config.image.size or start.image_size, "num_labels": 3129}
    if "mpc" in start.objectives and task == "pretrain":
        changes["object_classes"] = [str(number) for number in range(config.task["max_object_classes"])]
    assert config.text.max_length <= start.max_position_embeddings
    with torch.device("meta"):
        model = task_class(config).model_class(family)(start.with_changes(**changes))
    assert model.config.image_size % model.config.patch_size == 0
    new = [key for key, _ in model.named_parameters() if not key.startswith(model.base_model_prefix + ".")]
    groups = build_optimizer(model, config.optim, new).param_groups
    multipliers = {round(group["lr"] / config.optim.lr, 6) for group in groups}
    assert multipliers == {1.0, *config.optim.lr_mult_patterns.values(), config.optim.lr_mult}


@pytest.mark.parametrize("name", recipes())
def test_every_source_has_the_options_that_a_recipe_gives_it(name):
    tree = load_yaml(find_recipe(name))
    for stage in [merge(tree.get("defaults") or {}, each or {}) for each in tree.get("stages", {"": tree}).values()]:
        for split in ("train", "val", "test"):
            for source in as_list((stage.get("data") or {}).get(split)):
                known = inspect.signature(SOURCES[source["source"]]).parameters.keys() | {"source", "weight", "label"}
                assert source.keys() <= known, (name, split)


# As they stand, on corpora in miniature


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    corpora.write_all(folder / "corpora")
    for number in range(2):
        for name in ("cc3m", "cc12m"):
            write_tar(folder / "corpora" / name / f"{number:05}.tar", caption_members(2 * number, 2 * number + 1))
    for name in ("vqav2", "nlvr2", "vcr"):
        getattr(reasoning_corpora, name)(folder / "corpora" / name)
    return folder


def small(name: str, *overrides: str) -> RunConfig:
    """A published recipe with a micro model and two steps; its data, task and text as they stand, but for shares that
    leave something of a miniature."""
    family, _, task = split_name(name)
    preset, fields = SMALLEST[family]
    tree = apply_overrides(load_yaml(find_recipe(name)), list(overrides))
    own = (tree["model"].get("overrides") or {}) | fields
    if "text_config" in own:
        own = merge(own, {"text_config": {"max_position_embeddings": 128}})
    else:
        own = own | {"max_position_embeddings": 64}
    tree = merge(tree, {"image": {"size": 16}, "train": {"batch_size": 4, "accumulation": 1, "precision": "no"}})
    tree = merge(tree, {"evaluate": {"precision": "no", "num_workers": 0}, "output": f"runs/{name}"})
    corpus = {"coco-retrieval": "coco", "flickr-retrieval": "flickr30k"}.get(task, task.split("-")[0])
    corpus = {"vqa": "vqav2"}.get(corpus, corpus)
    if "path" in tree["data"]:
        tree["data"]["path"] = f"corpora/{corpus}"
    tree["model"] = {"preset": preset, "overrides": own}
    tree["tokenizer"] = {"vocab_size": 400}
    for source in (source for split in ("train", "val") for source in as_list(tree["data"].get(split))):
        if "val_share" in source:
            source["val_share"] = 0.5
        if "held-out" in source.get("split", ""):
            source["held_out"] = 2
    if "min_count" in tree["task"]:
        tree["task"]["min_count"] = 1
    tree["train"] |= {"steps": 2, "epochs": None, "num_workers": 0, "eval_every": 0, "save_every": 0}
    return RunConfig.build(tree, name)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "-base-" in name or name.endswith("-16m")])
def test_it_runs_as_it_stands_on_official_files(name, world, monkeypatch):
    monkeypatch.chdir(world)
    config = small(name)
    report = train(config)
    assert (world / "runs" / name / "report.html").is_file()
    measured = "test" if config.data.test is not None else "val"
    scores = report.scores.get(measured, {})
    # test-dev of VQAv2 has no public answers: predictions, and no score
    assert scores or (world / "runs" / name / "predictions.jsonl").is_file()


def test_nlvr2s_other_head_is_one_override(world, monkeypatch):
    monkeypatch.chdir(world)
    config = small("eve-base-nlvr2", "model.overrides.nlvr2_head=plain", "output=runs/plain")
    assert config.model.overrides["nlvr2_head"] == "plain"
    assert "accuracy" in train(config.model_copy(update={"output": "runs/plain"})).scores["test1"]


@pytest.mark.parametrize("name", ["eve-base-pretrain", "eve-large-pretrain-16m", "vle-base-pretrain"])
def test_no_image_of_downstream_tests_is_pre_trained_on(name, world):
    data = read_recipe(name, [f"data.root={world / 'corpora'}"]).data
    train = read_split(data, "train", "captions")
    shown = {str(train[place].image).rpartition("/")[2] for place in range(len(train))}
    held_out = {
        str(sample.image).rpartition("/")[2]
        for path in ("corpora/coco", "corpora/flickr30k")
        for sample in SOURCES["karpathy"](world / path, split="test")
    }
    assert held_out
    assert not shown & held_out
    assert open_image(train[0].image).size
    assert train.describe()["samples"] == len(train)
    left_out = [
        facts.get("left out as images of downstream tasks")
        for facts in train.describe().values()
        if isinstance(facts, dict)
    ]
    assert sum(count or 0 for count in left_out) > 0  # and it is said how many
