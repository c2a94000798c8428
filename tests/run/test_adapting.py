"""Parts of a model that keep their weights in training, and low-rank adapters."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from adapter_processes import adapted, train_adapters
from commands import call
from evle import evaluate, train
from evle.config import merge
from evle.engine.failures import Diverged
from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEForVQA
from evle.models.vle import VLEForVQA
from evle.pipelines import VQAPipeline
from evle.run.adapting import freeze
from evle.run.config import RunConfig
from evle.run.prepare import prepare
from evle.run.weights import ModelConfig
from evle.tasks.vqa import VQATask
from micro import SAMPLES, micro_run
from processes import run_on_two

PARTS = {"eve": "image_embedding", "vle": "vision_model"}


@pytest.mark.parametrize("family", ["eve", "vle"])
def test_a_frozen_part_keeps_its_weights_and_the_rest_learns(family, tmp_path):
    config = micro_run(tmp_path, "vqa", {"model": {"freeze": [PARTS[family]]}, "train": {"steps": 2}}, family)
    before = prepare(config, samples={"train": SAMPLES["vqa"]()})
    assert any("tensors are frozen" in note for note in before.notes)
    train(config, samples={"train": SAMPLES["vqa"]()})
    after = type(before.loaded.model).from_pretrained(tmp_path).state_dict()
    same = {name for name, each in before.loaded.model.named_parameters() if torch.equal(after[name], each)}
    frozen = {name for name, _ in before.loaded.model.named_parameters() if PARTS[family] in name}
    assert frozen <= same
    assert not any("attention" in name and name.endswith("weight") for name in same - frozen)


def test_a_frozen_batch_norm_keeps_its_statistics_in_training():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = model.eval()[:2](images)
    assert freeze(model, [r"^1\."]) == ["1.bias", "1.weight"]
    model.train()
    torch.testing.assert_close(model[:2](images), expected)
    model(images)
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert not torch.equal(model[3].running_mean, torch.zeros(4))  # this one is trained


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    config = micro_run(tmp_path, "vqa", {"model": {"freeze": ["vision_modell"]}}, "vle")
    with pytest.raises(
        ConfigError, match=r"model\.freeze: 'vision_modell' matches no parameter; did you mean 'vle\.vis"
    ):
        prepare(config, samples={"train": SAMPLES["vqa"]()})
    with pytest.raises(ConfigError, match=r"pattern '\(' is no regular expression"):
        ModelConfig.build({"freeze": ["("]}, "model")


def test_nothing_left_to_train_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"all are frozen; name fewer in model\.freeze"):
        train(micro_run(tmp_path, "vqa", {"model": {"freeze": ["."]}}), samples={"train": SAMPLES["vqa"]()})


# Adapters


def base_of(family, folder):
    """A trained VQA run to adapt."""
    train(micro_run(folder, "vqa", {"train": {"steps": 2}}, family), samples={"train": SAMPLES["vqa"]()})
    return folder


@pytest.fixture(scope="module", params=["eve", "vle"])
def trained(request, tmp_path_factory):
    """A family, its base run, and a run of adapters of it."""
    root = tmp_path_factory.mktemp("adapters")
    base = base_of(request.param, root / "base")
    train(adapted(root / "lora", base, request.param, dora=True), samples={"train": SAMPLES["vqa"]()})
    return request.param, base, root / "lora"


def answers(source):
    return VQAPipeline(source, device="cpu")(SAMPLES["vqa"]()[0].image, "which colour is it", top_k=8)


def test_an_adapter_is_small_and_answers_as_the_trained_model_did(trained, tmp_path):
    family, base, run = trained
    assert not list((run / "model").glob("*.safetensors"))
    stored = load_file(run / "model" / "adapter" / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in stored)
    assert not any("word_embeddings" in name or "text_embedding.word" in name for name in stored)
    state = load_file(run / "checkpoints" / "last" / "model.safetensors")
    model = prepare(adapted(tmp_path, base, family, dora=True), samples={"train": SAMPLES["vqa"]()}).loaded.model
    model.load_state_dict(state, strict=False)
    pipeline = VQAPipeline(run, device="cpu")
    samples = SAMPLES["vqa"]()
    inputs = pipeline.tokens([sample.question for sample in samples])
    inputs["pixel_values"] = pipeline.pixel_values([pipeline.read(sample.image) for sample in samples])
    with torch.inference_mode():
        torch.testing.assert_close(pipeline.model(**inputs).logits, model.eval()(**inputs).logits, atol=1e-5, rtol=1e-4)


def test_peft_reads_the_adapter_on_top_of_the_base(trained):
    family, base, run = trained
    models = {"eve": EVEForVQA, "vle": VLEForVQA}
    model = peft.PeftModel.from_pretrained(models[family].from_pretrained(base), run / "model" / "adapter")
    merged = model.merge_and_unload().state_dict()
    ours = models[family].from_pretrained(run).state_dict()
    assert ours.keys() == merged.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-5)


def test_an_interrupted_run_of_adapters_resumes_bit_for_bit(trained, tmp_path, monkeypatch):
    """Stopped in the middle, with dropout in the adapters, it ends with the weights of a run that never stopped."""
    family, base, _ = trained
    folders = {name: tmp_path / name for name in ("whole", "cut")}
    configs = {
        name: RunConfig.build(
            merge(
                adapted(folder, base, family, dropout=0.2).plain(),
                {"train": {"save_every": 2, "steps": 6, "batch_size": 4}},
            ),
            "test",
        )
        for name, folder in folders.items()
    }
    samples = {"train": SAMPLES["vqa"]()}
    train(configs["whole"], samples=samples)
    collate, calls = VQATask.collate_raw, []

    def failing(self, features):
        calls.append(1)
        if len(calls) == 4:
            raise Diverged("the power went out")
        return collate(self, features)

    with monkeypatch.context() as patch:
        patch.setattr(VQATask, "collate_raw", failing)
        with pytest.raises(Diverged):
            train(configs["cut"], samples=samples)
    assert (folders["cut"] / "checkpoints" / "last").is_dir()
    assert not (folders["cut"] / "model" / "adapter").exists()
    train(configs["cut"], samples=samples)
    first, second = (
        load_file(folder / "model" / "adapter" / "adapter_model.safetensors") for folder in folders.values()
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_train_one_adapter(tmp_path):
    """Both see half of the rows; the adapter that they write is read, and learned."""
    base = base_of("eve", tmp_path / "base")
    run_on_two(train_adapters, str(base), str(tmp_path / "run"))
    stored = load_file(tmp_path / "run" / "model" / "adapter" / "adapter_model.safetensors")
    learned = [tensor for name, tensor in stored.items() if "lora_B" in name]
    assert learned
    assert any(bool(tensor.abs().max() > 0) for tensor in learned)
    assert len(answers(tmp_path / "run")[0]["answers"]) > 1


def test_an_adapter_merges_into_a_whole_model(trained, tmp_path):
    _, _, run = trained
    call("merge", run, "-o", tmp_path / "merged")
    assert (tmp_path / "merged" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "merged" / "model" / "adapter").exists()
    for ours, merged in zip(answers(run), answers(tmp_path / "merged"), strict=True):
        assert ours["answer"] == merged["answer"]
        assert ours["score"] == pytest.approx(merged["score"], abs=1e-6)
    assert "holds a model already" in call("merge", run, "-o", tmp_path / "merged", code=2)
    assert "has no adapter to merge" in call("merge", tmp_path / "merged", "-o", tmp_path / "b", code=2)


def test_an_adapter_is_scored_and_another_task_starts_from_it(trained, tmp_path):
    family, base, run = trained
    config = adapted(run, base, family, dora=True)
    report = evaluate(config, samples=SAMPLES["vqa"](), output=tmp_path / "scores")
    assert report.scores
    start = adapted(tmp_path / "retrieval", run, family, task="retrieval", targets=["attention"])
    ready = prepare(start, samples={"train": SAMPLES["retrieval"]()})
    assert "adapters of rank 2" in "\n".join(ready.notes)
    trained_names = {name for name, each in ready.loaded.model.named_parameters() if each.requires_grad}
    assert {name for name in trained_names if "lora_" not in name} >= {"contrast.temperature"}
    assert all("attention" in name for name in trained_names if "lora_" in name)


def test_an_adapter_of_another_model_is_refused_in_one_line(trained, tmp_path):
    family, _, run = trained
    base_of(family, tmp_path / "other")
    with torch.no_grad():
        model = {"eve": EVEForVQA, "vle": VLEForVQA}[family].from_pretrained(tmp_path / "other")
        model.base_model.get_input_embeddings().weight += 1
    model.save_pretrained(tmp_path / "other" / "model")
    shutil.copytree(run / "model", tmp_path / "moved")
    factors = tmp_path / "moved" / "adapter" / "adapter_model.safetensors"
    whole = factors.read_bytes()
    factors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: damaged \(its checksum is"):
        VQAPipeline(tmp_path / "moved")
    factors.write_bytes(whole)
    note = tmp_path / "moved" / "adapter" / "base.json"
    facts = json.loads(note.read_text())
    note.write_text(json.dumps({**facts, "model": "other/model", "absolute": str(tmp_path / "other" / "model")}))
    with pytest.raises(CheckpointError, match=r"an adapter of another model than .*other.*put the original"):
        VQAPipeline(tmp_path / "moved")
    note.write_text(json.dumps({**facts, "model": "gone", "absolute": str(tmp_path / "gone")}))
    with pytest.raises(CheckpointError, match=r"base of this adapter cannot be read .*gone: no such folder"):
        VQAPipeline(tmp_path / "moved")


def test_adapters_need_trained_weights_and_layers_to_adapt(trained, tmp_path):
    family, base, _ = trained
    with pytest.raises(ConfigError, match=r"lora adapts trained weights: name them with model\.init"):
        micro_run(tmp_path, "vqa", {"model": {"lora": {"rank": 2}}}, family)
    config = adapted(tmp_path, base, family, targets=["nothing"])
    with pytest.raises(ConfigError, match=r"model\.lora\.targets: 'nothing' matches no linear layer"):
        prepare(config, samples={"train": SAMPLES["vqa"]()})
