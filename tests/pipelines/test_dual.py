"""CLIP and SigLIP of transformers in our pipelines, and models by their hub names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPModel,
    CLIPProcessor,
    SiglipModel,
    SiglipProcessor,
    pipeline,
)

from commands import call
from dual_models import save_dual
from evle.data.samples import CaptionSample
from evle.errors import CheckpointError, ConfigError
from evle.models.folders import hub_folder, model_folder
from evle.models.vle import VLEConfig, VLEForRetrieval, VLEProcessor
from evle.pipelines import ClassifyPipeline, EmbedPipeline, MatchPipeline
from evle.run.evaluation import load_to_score
from evle.search import ImageIndex
from evle.tasks.task import EvaluationSettings, TextConfig
from evle.tasks.vqa import VQATask
from evle.transforms.text import train_tokenizer
from retrieval_models import COLOURS, save_retrieval_model

TEXTS = ["a red ball", "What colour? " * 9, "x"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("dual")
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40 + number, 30), colour).save(base / f"{colour}.png")
    save_retrieval_model(base / "eve")
    return {"images": base, "eve": base / "eve"} | {name: save_dual(base / name, name) for name in ("clip", "siglip")}


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_embeddings_are_those_of_transformers(folders, family):
    embed = EmbedPipeline(folders[family], batch_size=2)
    classes = {"clip": (CLIPModel, CLIPProcessor), "siglip": (SiglipModel, SiglipProcessor)}[family]
    model, processor = (kind.from_pretrained(folders[family]) for kind in classes)
    images = [Image.open(folders["images"] / f"{colour}.png") for colour in COLOURS]
    padding = "max_length" if family == "siglip" else True
    tokens = processor.tokenizer(TEXTS, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    tokens = {"input_ids": tokens["input_ids"]} if family == "siglip" else dict(tokens)
    with torch.no_grad():
        text = model.eval().get_text_features(**{k: v for k, v in tokens.items() if k != "token_type_ids"})
        image = model.get_image_features(processor.image_processor(images=images, return_tensors="pt")["pixel_values"])
    for ours, theirs in ((embed.texts(TEXTS), text), (embed.images(images), image)):
        expected = torch.nn.functional.normalize(theirs.pooler_output, dim=-1)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_images_are_indexed_found_and_ranked_again_by_another_model(folders, family, tmp_path):
    index, images = tmp_path / "index", folders["images"]
    call("index", images, "-o", index, "--model", folders[family])
    assert "red.png" in call("search", index, "--image", images / "red.png", "-k", 1)
    said = call("search", index, "a red ball", "-k", 3, "--rerank", 3, "--rerank-model", folders["eve"])
    assert said.count("match") == 3
    with pytest.raises(ConfigError, match="cannot match them; name an EVE or VLE"):
        ImageIndex.load(index).query("a red ball", rerank=3)
    assert "cannot match" in call("search", index, "a red ball", "--rerank", 3, code=2)
    expected = MatchPipeline(folders["eve"])(images / "red.png", "a red ball")[0]["score"]
    hits = ImageIndex.load(index, match_model=folders["eve"]).query("a red ball", k=5, rerank=5)
    assert next(hit.match for hit in hits if hit.key == "red.png") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip", "eve"])
def test_labels_are_scored_by_similarity(folders, family):
    classify = ClassifyPipeline(folders[family])
    rows = classify([folders["images"] / "red.png"] * 2, COLOURS, template="a {} ball")
    for row in rows:
        assert {each["label"] for each in row} == set(COLOURS)
        assert sum(each["score"] for each in row) == pytest.approx(1, abs=1e-5)
    cosines = classify.images(folders["images"] / "red.png") @ classify.texts([f"a {c} ball" for c in COLOURS]).T
    assert rows[0][0]["label"] == COLOURS[int(cosines.argmax())]
    with pytest.raises(ConfigError, match=r"has no \{\}"):
        classify(folders["images"] / "red.png", COLOURS, template="a ball")
    for labels in (["red", "blue", "red"], ["Red" if family == "eve" else "red", "red"]):
        with pytest.raises(ConfigError, match=r"the labels '[Rr]ed' and 'red' are read as one text; leave one of them"):
            classify(folders["images"] / "red.png", labels)


def test_retrieval_is_evaluated_by_our_protocol(folders):
    embed = EmbedPipeline(folders["clip"])
    samples = [CaptionSample(c, folders["images"] / f"{c}.png", (f"a {c} ball",)) for c in COLOURS]
    scores = embed.task.evaluate(embed.model, samples, EvaluationSettings(batch_size=2)).scores
    best = (embed.texts([s.captions[0] for s in samples]) @ embed.images([s.image for s in samples]).T).argmax(dim=1)
    assert scores["IR@1"] == pytest.approx(100 * float((best == torch.arange(5)).float().mean()))


@pytest.fixture(scope="module")
def captions(folders):
    """The images of `folders` as a user's own folder."""
    rows = [{"image": f"{colour}.png", "captions": [f"a {colour} ball"]} for colour in COLOURS]
    (folders["images"] / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folders["images"]


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_evaluate_scores_a_model_folder_as_its_pipeline_embeds(folders, captions, family, tmp_path):
    data = (f"data.path={captions}", "data.test.source=folder")
    call("evaluate", folders[family], "task.name=retrieval", *data, "-o", tmp_path / "named")
    recipe = tmp_path / "retrieval.yaml"
    recipe.write_text("task: {name: retrieval, k_test: 4}\nimage: {size: 384, framing: whole}\ntrain: {steps: 1}\n")
    call("evaluate", folders[family], "--recipe", recipe, *data, "-o", tmp_path / "recipe")
    named, by_recipe = (
        json.loads((tmp_path / name / "report.json").read_text())["scores"]["test"] for name in ("named", "recipe")
    )
    embed = EmbedPipeline(folders[family])
    texts, images = ([f"a {c} ball" for c in COLOURS], [captions / f"{c}.png" for c in COLOURS])
    similarities = embed.texts(texts) @ embed.images(images).T
    first = 100 * float((similarities.argmax(dim=1) == torch.arange(len(COLOURS))).float().mean())
    assert named == by_recipe
    assert named["IR@1"] == pytest.approx(first)


def test_evaluate_scores_a_hub_name(cache, captions):
    call("evaluate", "someone/tiny@small", "task.name=retrieval", f"data.path={captions}", "data.test.source=folder")
    assert (Path("runs/someone/tiny@small/evaluation/report.json")).is_file()


def test_evaluate_names_what_is_missing(folders, captions, tmp_path):
    message = call("evaluate", folders["clip"], f"data.path={captions}", code=2)
    assert "no run documents what to score it by; name a recipe with --recipe, or task and data" in message
    with pytest.raises(CheckpointError, match="model_type 'clip'"):
        load_to_score(folders["clip"], VQATask)
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(CheckpointError, match=r"any shape \(NaFlex\), which is not supported; take a SigLIP 2 of one"):
        EmbedPipeline(tmp_path)


def save_vle(folder: Path) -> Path:
    tokenizer = train_tokenizer([f"a {colour} ball" for colour in COLOURS], 300)
    torch.manual_seed(0)
    model = VLEForRetrieval(VLEConfig.from_preset("vle-tiny", image_size=32, vocab_size=len(tokenizer)))
    model.save_pretrained(folder)
    VLEProcessor.for_size(32, tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["eve", "vle"])
def test_transformers_classifies_zero_shot_with_our_models(family, folders, tmp_path):
    (save_retrieval_model if family == "eve" else save_vle)(tmp_path)
    labels = [f"a {colour} ball" for colour in COLOURS]
    image = folders["images"] / "red.png"
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    result = classify(str(image), candidate_labels=labels, hypothesis_template="{}")
    embed = EmbedPipeline(tmp_path, device="cpu", text=TextConfig(clean=False))
    scale = 1 / embed.model.contrast.clamped_temperature()
    expected = torch.softmax(scale * (embed.images(image) @ embed.texts(labels).T)[0], dim=0)
    scores = {each["label"]: each["score"] for each in result}
    torch.testing.assert_close(torch.tensor([scores[label] for label in labels]), expected.detach(), atol=1e-4, rtol=0)
    one = classify([str(image)] * 2, candidate_labels=labels[:1], hypothesis_template="{}", batch_size=2)
    assert [each[0]["label"] for each in one] == labels[:1] * 2


def test_a_dual_encoder_is_no_matcher(folders):
    with pytest.raises(CheckpointError, match="model_type 'clip'"):
        MatchPipeline(folders["clip"])


# --- hub names


@pytest.fixture
def cache(folders, tmp_path, monkeypatch):
    """A local cache as the hub's client leaves it, with one model and the branches main and small."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--someone--tiny"
    for revision in ("main", "small"):
        commit = {"main": "a", "small": "b"}[revision] * 40
        shutil.copytree(folders["eve"] if revision == "main" else folders["clip"], repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    hub_folder.cache_clear()
    yield repository
    hub_folder.cache_clear()


def test_a_hub_name_serves_where_a_folder_does(cache, folders):
    assert model_folder("someone/tiny") == cache / "snapshots" / ("a" * 40)
    assert torch.equal(EmbedPipeline("someone/tiny").texts("red"), EmbedPipeline(folders["eve"]).texts("red"))
    assert torch.equal(EmbedPipeline("someone/tiny@small").texts("red"), EmbedPipeline(folders["clip"]).texts("red"))
    assert len(MatchPipeline("someone/tiny")(folders["images"] / "red.png", ["a", "b"])) == 2


def test_an_index_remembers_a_hub_name(cache, folders, tmp_path):
    ImageIndex.build("someone/tiny", folders["images"], tmp_path / "index", progress=False)
    assert ImageIndex.load(tmp_path / "index").query("red", k=1)


@pytest.mark.parametrize("name", ["someone/other", "someone/tiny@v9"])
def test_a_name_that_is_nowhere_is_one_line(cache, name):
    with pytest.raises(CheckpointError, match=f"{name}: no such folder, not in the hub's local cache"):
        EmbedPipeline(name)


def test_a_path_below_a_folder_that_exists_is_never_a_hub_name(cache, tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="runs/vqa: no such folder; give"):
        model_folder("runs/vqa")
