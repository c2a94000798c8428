"""A run from any two towers, in folders or by hub names: trained, evaluated, indexed and searched by commands."""

import json

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from PIL import Image

from commands import call
from evle.config import dump_yaml
from evle.errors import CheckpointError
from evle.models.folders import hub_folder
from evle.models.vle import VLEModel
from retrieval_models import save_retrieval_model
from tower_folders import STATISTICS, put_in_cache, save_towers

COLOURS = ("red", "blue", "green", "black")


@pytest.fixture
def photos(tmp_path):
    """Images of one colour with captions, in three splits."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for split in ("train", "val", "test"):
        for colour in COLOURS:
            Image.new("RGB", (40, 40), colour).save(folder / f"{colour}-{split}.png")
            rows.append({"image": f"{colour}-{split}.png", "caption": f"a {colour} ball", "split": split})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write_recipe(path, photos, **model):
    """A run of retrieval of two steps."""
    sources = {split: {"source": "folder", "path": str(photos), "split": split} for split in ("train", "val", "test")}
    tree = {
        "task": {"name": "retrieval", "k_test": 2},
        "model": {"preset": "vle-tiny", "overrides": {"hidden_size": 8, "num_attention_heads": 2}, **model},
        "data": sources,
        "text": {"max_length": 12},
        "train": {"steps": 2, "batch_size": 4, "eval_every": 0},
        "evaluate": {"batch_size": 4, "examples": 1},
    }
    path.write_text(dump_yaml(tree))
    return path


@pytest.mark.parametrize(("vision", "text"), [("clip", "bert"), ("siglip", "modernbert"), ("timm-resnet", "mpnet")])
def test_towers_go_from_training_to_search(vision, text, photos, tmp_path):
    if vision.startswith("timm"):
        pytest.importorskip("timm")
    folders = save_towers(tmp_path / "towers", vision, text)
    recipe = write_recipe(tmp_path / "recipe.yaml", photos, vision=str(folders[0]), text=str(folders[1]))
    run = tmp_path / "run"
    call("train", recipe, "-o", run)
    model = VLEModel.from_pretrained(run / "model")
    assert model.config.text_config.model_type == text
    assert (
        json.loads((run / "model" / "preprocessor_config.json").read_text())["image_mean"] == STATISTICS["image_mean"]
    )
    assert "R@mean" in call("evaluate", run)
    call("index", photos, "-o", tmp_path / "index", "--model", run)
    found = call("search", tmp_path / "index", "a red ball", "-k", 3, "--rerank", 3, "--json")
    assert len([line for line in found.splitlines() if line.startswith("{")]) == 3


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A local cache with two towers, and a retrieval model on the branch v1, without network."""
    vision, text = save_towers(tmp_path / "towers", "clip", "bert")
    hub = tmp_path / "hub"
    put_in_cache(hub, vision, "someone/eyes")
    put_in_cache(hub, text, "someone/words", "v2")
    put_in_cache(hub, save_retrieval_model(tmp_path / "tiny"), "someone/tiny", "v1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.chdir(tmp_path)
    hub_folder.cache_clear()
    yield hub
    hub_folder.cache_clear()


def test_a_later_run_normalises_images_as_the_model_that_it_starts_from(photos, tmp_path):
    folders = save_towers(tmp_path / "towers", "clip", "bert")
    recipe = write_recipe(tmp_path / "first.yaml", photos, vision=str(folders[0]), text=str(folders[1]))
    call("train", recipe, "-o", tmp_path / "first")
    recipe = write_recipe(tmp_path / "second.yaml", photos, preset=None, overrides={}, init=str(tmp_path / "first"))
    call("train", recipe, "-o", tmp_path / "second")
    processors = [
        json.loads((tmp_path / run / "model" / "preprocessor_config.json").read_text()) for run in ("first", "second")
    ]
    for name in ("image_mean", "image_std"):
        assert processors[1][name] == processors[0][name] == STATISTICS[name]


def test_towers_and_a_tokenizer_are_named_as_on_the_hub(cache, photos, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", photos, vision="someone/eyes", text="someone/words@v2")
    call("train", recipe, "tokenizer.path=someone/words@v2", "-o", tmp_path / "run")
    call("new", "vle", "--vision", "someone/eyes", "--text", "someone/words@v2", "-o", tmp_path / "new", "--blocks", 2)
    assert VLEModel.from_pretrained(tmp_path / "new").config.text_config.model_type == "bert"


def test_a_run_starts_from_a_hub_name_and_verbs_take_one(cache, photos, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", photos, init="someone/tiny@v1", preset=None, overrides={})
    call("train", recipe, "-o", tmp_path / "run")
    image = photos / "red-test.png"
    assert "%" in call("match", "someone/tiny@v1", image, "a red ball")
    call("index", photos, "-o", tmp_path / "index", "--model", "someone/tiny@v1")
    found = call("search", tmp_path / "index", "a ball", "-k", 2, "--rerank", 2, "--rerank-model", "someone/tiny@v1")
    assert found.count("match") == 2


@pytest.mark.parametrize("key", ["vision", "text", "init"])
def test_a_name_that_is_nowhere_is_one_line_for_every_key(key, cache, photos, tmp_path):
    known = {"vision": "someone/eyes", "text": "someone/words@v2"}
    model = {"init": "no/where", "preset": None, "overrides": {}} if key == "init" else {**known, key: "no/where"}
    recipe = write_recipe(tmp_path / "recipe.yaml", photos, **model)
    output = call("train", recipe, "-o", tmp_path / "run", code=2)
    assert "no/where: no such folder, not in the hub's local cache" in output
    assert "Traceback" not in output
    output = call(
        "train", write_recipe(recipe, photos, **known), "tokenizer.path=no/where", "-o", tmp_path / "run", code=2
    )
    assert "no/where" in output


def test_a_revision_that_is_not_cached_and_a_path_are_told_apart(cache, tmp_path):
    for name in ("someone/tiny@v9", "someone/tiny"):
        with pytest.raises(CheckpointError, match=f"{name}: no such folder, not in the hub's local cache"):
            hub_folder(name)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError, "me/gated: a gated model; accept its terms on the hub, then run `hf auth login`"),
        (RepositoryNotFoundError, "me/gated: no such folder, and no such model on the hub"),
    ],
)
def test_a_gated_and_a_missing_model_are_one_line(error, words, monkeypatch):
    response = httpx.Response(403, request=httpx.Request("GET", "http://hub"))

    def refuse(*_, **__):
        raise error("refused", response=response)

    monkeypatch.setattr("evle.models.folders.snapshot_download", refuse)
    hub_folder.cache_clear()
    with pytest.raises(CheckpointError) as raised:
        hub_folder("me/gated")
    assert words in str(raised.value)
