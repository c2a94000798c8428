"""Model folders that load and would compute nonsense: refused, with the tensor or setting at fault."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

from evle import evaluate
from evle.errors import CheckpointError
from evle.models.eve import EVEForRetrieval, EVEProcessor
from evle.models.loading import load_model, refuse_unfit_processor
from evle.models.soundness import refuse_odd_images, refuse_odd_labels, refuse_odd_tensors
from evle.pipelines import EmbedPipeline, MatchPipeline
from evle.transforms.text import train_tokenizer
from micro import SAMPLES, micro_run
from retrieval_models import save_retrieval_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    save_retrieval_model(folder)
    return folder


@pytest.fixture
def model(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def load(folder):
    return load_model(folder, {"eve": EVEForRetrieval})


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return name


def change_json(file, **fields):
    content = json.loads(file.read_text())
    (content.get("image_processor", content)).update(fields)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(torch.int8, "I8"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.int64, "I64")],
)
def test_quantised_weights_are_refused(model, dtype, kind):
    name = change_weights(model, lambda tensor: tensor.to(dtype))
    with pytest.raises(CheckpointError, match=f"{name} is stored as {kind}; quantised weights are not read"):
        load(model)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_finite_are_refused(model, value):
    def one_bad(tensor):
        tensor.view(-1)[3] = float(value)
        return tensor

    name = change_weights(model, one_bad)
    with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite"):
        load(model)


def test_weights_to_start_from_are_as_strict():
    target = {"a": torch.zeros(2), "count": torch.zeros(2, dtype=torch.int64)}
    refuse_odd_tensors(
        {"a": torch.zeros(2, dtype=torch.float16), "count": torch.ones(2, dtype=torch.int64)}, target, "x"
    )
    for tensor, words in (
        (torch.zeros(2, dtype=torch.int8), "stored as int8"),
        (torch.full((2,), torch.nan), "finite"),
    ):
        with pytest.raises(CheckpointError, match=words):
            refuse_odd_tensors({"a": tensor}, target, "x")


def test_numbers_that_a_model_computes_are_finite_or_refused(model):
    tensors = load_file(model / "model.safetensors")
    large = {name: tensor * 1e30 if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    save_file(large, model / "model.safetensors", metadata={"format": "pt"})
    for pipeline, inputs in ((EmbedPipeline, ()), (MatchPipeline, (Image.new("RGB", (20, 20)),))):
        asked = pipeline(model, device="cpu")
        with pytest.raises(CheckpointError, match=r"the model computes values that are not finite"):
            asked(*inputs, "a red ball") if inputs else asked.texts("a red ball")
    with pytest.raises(CheckpointError, match=r"the model computes values that are not finite"):
        evaluate(micro_run(model / "scored", "retrieval"), model=model, samples=SAMPLES["retrieval"]())


def test_the_weights_of_a_larger_model_are_refused(model):
    tensors = load_file(model / "model.safetensors")
    tensors["other.weight"] = torch.zeros(2)  # of another head, as pre-training leaves it
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    load(model)
    tensors["eve.layers.99.attention.proj.bias"] = torch.zeros(2)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"1 tensors of a larger model than its config\.json describes, first eve"
    ):
        load(model)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_std": [0, 0, 0]}, "image_std must be above 0"),
        ({"image_std": [-0.5, 0.5, 0.5]}, "image_std must be above 0"),
        (
            {"image_mean": [123.7, 116.3, 103.5]},
            r"image_mean is \(123.7, .* must be of colours from 0 to 1; divide it by",
        ),
        ({"image_std": [58.4, 57.1, 57.4]}, "image_std is"),
        ({"image_mean": "x"}, "image_mean must be three numbers, not x"),
        ({"image_mean": [float("nan")] * 3}, "image_mean must be three numbers"),
        ({"do_normalize": False}, "do_rescale and do_normalize must be true"),
        ({"rescale_factor": 1.0}, "rescale_factor 1/255"),
        ({"size": {"height": 320, "width": 320}}, r"makes images of 320 pixels, and config\.json says"),
        ({"size": {"height": -16, "width": 16}}, "makes images of None pixels"),
    ],
)
def test_an_image_processor_of_another_model_is_refused(model, fields, words):
    change_json(model / "processor_config.json", **fields)
    with pytest.raises(CheckpointError, match=words):
        load(model)


def test_a_tokenizer_without_the_ends_of_a_text_is_refused(model):
    change_json(model / "tokenizer.json", post_processor=None)
    with pytest.raises(CheckpointError, match=r"puts no \[CLS\] around a text"):
        load(model)


@pytest.mark.parametrize("labels", [{"1": "a", "2": "b"}, {"0": "a", "2": "b"}, {"a": "b"}])
def test_labels_with_a_gap_are_refused(labels, tmp_path):
    with pytest.raises(CheckpointError, match="id2label must number the answers from 0 on"):
        refuse_odd_labels(labels, tmp_path)
    refuse_odd_labels({"1": "b", "0": "a"}, tmp_path)
    refuse_odd_labels(None, tmp_path)


def test_an_answer_that_a_model_has_twice_is_refused_and_another_case_is_reported(tmp_path, caplog):
    for labels in ({"0": "red", "1": "blue", "2": "red"}, dict.fromkeys(range(2), "red")):
        with pytest.raises(CheckpointError, match=r"config\.json: id2label has the answer 'red' twice"):
            refuse_odd_labels(labels, tmp_path)
    refuse_odd_labels({"0": "Yes", "1": "no", "2": "yes "}, tmp_path)
    assert "the answers 'Yes' and 'yes ' are separate outputs of this model" in caplog.text


def test_files_that_are_not_read_are_not_looked_at(model):
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, model / "model.int8.safetensors")
    save_file({"a": torch.zeros(1, dtype=torch.int8)}, model / "model-00001-of-00002.safetensors")
    (model / "model_ema.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    load(model)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_quantised_weights_in_a_file_of_torch_are_refused(model, is_sharded):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    file = model / ("pytorch_model-1.bin" if is_sharded else "pytorch_model.bin")
    if is_sharded:
        weights = dict.fromkeys(tensors, file.name)
        (model / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    torch.save(tensors, file)
    load(model)
    torch.save({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, file)
    with pytest.raises(CheckpointError, match=rf"{file.name}: .* is stored as int8; quantised weights are not read"):
        load(model)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"resample": 0}, "resample is 0, and must be 3"),
        ({"do_resize": False}, "do_resize is false, and must be true"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is true, and must be false"),
        ({"framing": "middle"}, "framing is 'middle'; it must be one of: whole, pad, centre"),
        ({"framing": "centre"}, "do_center_crop is false, and must be true"),
        (
            {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 24}},
            r'size is {"shortest_edge": 24}, and must be {"shortest_edge": 16}',
        ),
        (
            {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}},
            r'size is {"height": 16, "width": 16}, and',
        ),
    ],
)
def test_settings_of_images_that_would_be_ignored_are_refused(model, fields, words):
    change_json(model / "processor_config.json", **fields)
    with pytest.raises(CheckpointError, match=rf"processor_config\.json: {words}"):
        load(model)


def test_settings_of_images_as_released_and_as_trained_are_accepted(model):
    file = model / "processor_config.json"
    content = json.loads(file.read_text())
    square = {"height": 16, "width": 16}
    for fields in (
        {"size": {"shortest_edge": 16}, "crop_size": square, "do_center_crop": True},
        {"size": {"shortest_edge": 16}, "crop_size": square, "do_center_crop": True, "framing": "centre"},
        {"size": square, "crop_size": square, "do_center_crop": False, "framing": "pad"},
        {"size": 16},
    ):
        images = {**content["image_processor"], **fields}
        file.write_text(json.dumps({**content, "image_processor": images}))
        load(model)
        images.pop("resample")
        file.write_text(json.dumps({**content, "image_processor": images}))
        load(model)
    released = {"crop_size": 16, "size": 16, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor"}
    refuse_odd_images(SimpleNamespace(image_processor=CLIPImageProcessor(**released)), 16, "x")


def test_a_processor_given_as_an_object_must_fit_the_model(model):
    encoder, processor = load(model)
    refuse_unfit_processor(encoder, processor)
    with pytest.raises(CheckpointError, match=r"the given processor: a .* without image_processor"):
        refuse_unfit_processor(encoder, processor.tokenizer)
    other = EVEProcessor.for_size(encoder.config.image_size, train_tokenizer(["a b"] * 9, 262))
    other.tokenizer.add_tokens([f"<{number}>" for number in range(400)])
    with pytest.raises(CheckpointError, match="the given processor: the tokenizer has a token of number"):
        refuse_unfit_processor(encoder, other)
    processor = EVEProcessor.for_size(32, processor.tokenizer)
    with pytest.raises(CheckpointError, match="the given processor: the image processor makes images of 32 pixels"):
        refuse_unfit_processor(encoder, processor)
