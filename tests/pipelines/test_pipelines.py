"""Inference for people: what may be given, what comes back, and what is refused."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from evle.errors import CheckpointError, ConfigError, DataError, SampleError
from evle.models.eve import EVEForRetrieval, EVEProcessor
from evle.models.folders import model_folder
from evle.models.vocabulary import tokens_noted
from evle.pipelines import ClassifyPipeline, EmbedPipeline, MatchPipeline, VQAPipeline, pairs
from evle.tasks.task import TextConfig
from evle.tasks.trained import text_options
from evle.transforms.text import train_tokenizer
from retrieval_models import COLOURS, save_retrieval_model, save_vqa_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"retrieval": save_retrieval_model(folder / "retrieval"), "vqa": save_vqa_model(folder / "vqa")}


@pytest.fixture(scope="module")
def embed(models):
    return EmbedPipeline(models["retrieval"], batch_size=2)


def image(colour: str) -> Image.Image:
    return Image.new("RGB", (40, 30), colour)


def test_embeddings_are_unit_rows_whatever_the_batch(embed, models):
    pictures = [image(colour) for colour in COLOURS]
    features = embed.images(pictures)
    assert features.shape == (len(COLOURS), embed.dimension)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(COLOURS)))
    one = EmbedPipeline(models["retrieval"], batch_size=1, num_workers=0)
    torch.testing.assert_close(one.images(pictures), features, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.texts(["a red ball", "a"]), embed.texts(["a red ball", "a"]), atol=1e-5, rtol=0)


def test_a_path_bytes_and_a_image_give_the_same_embedding(embed, tmp_path):
    image("red").save(tmp_path / "red.png")
    data = io.BytesIO()
    image("red").save(data, "PNG")
    features = embed.images([tmp_path / "red.png", str(tmp_path / "red.png"), data.getvalue(), image("red")])
    assert torch.equal(features, features[:1].expand(4, -1)) or torch.allclose(features, features[:1], atol=1e-6)


def test_nothing_in_is_nothing_out(embed):
    assert embed.images([]).shape == embed.texts([]).shape == (0, embed.dimension)


def test_an_unreadable_image_is_an_error_or_is_named_and_left_out(embed, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 not an image")
    sources = [image("red"), tmp_path / "bad.jpg", image("blue"), tmp_path / "missing.png"]
    with pytest.raises(SampleError, match=r"bad\.jpg"):
        embed.images(sources)
    batches = list(embed.image_batches(sources))
    assert [row for batch in batches for row in batch.rows] == [0, 2]
    assert sorted(row for batch in batches for row in batch.failures) == [1, 3]


def test_the_model_keeps_the_mode_it_was_in(embed):
    embed.model.train()
    try:
        first, second = embed.texts("a red ball"), embed.texts("a red ball")
        assert embed.model.training
        assert torch.equal(first, second)
        assert not first.requires_grad
    finally:
        embed.model.eval()


def test_calls_that_overlap_share_nothing(models):
    """Another length of texts, another order of ending, a model in training mode: each call gets its own answer."""
    first = EmbedPipeline(models["retrieval"], batch_size=2)
    embeds = [
        EmbedPipeline(model=first.model, processor=first.processor, text=TextConfig(max_length=length))
        for length in (4, 12)
    ]
    first.model.train()
    frozen = next(first.model.children()).eval()
    texts = [f"a {colour} ball what colour how many " * number for number, colour in enumerate(COLOURS, 1)]
    expected = [embed.texts(texts) for embed in embeds]
    assert not torch.equal(*expected)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda turn: embeds[turn % 2].texts(texts), range(60)))
    assert all(torch.equal(result, expected[turn % 2]) for turn, result in enumerate(results))
    assert first.model.training
    assert not frozen.training


def test_batches_by_length_change_no_result(models):
    texts = ["ball " * length for length in (9, 1, 5, 3, 7)]
    small, whole = (EmbedPipeline(models["retrieval"], batch_size=size) for size in (2, 8))
    torch.testing.assert_close(small.texts(texts), whole.texts(texts), atol=1e-5, rtol=0)
    images = [image(colour) for colour in COLOURS]
    small, whole = (MatchPipeline(models["retrieval"], batch_size=size) for size in (2, 8))
    torch.testing.assert_close(small.margins(images, texts)[0], whole.margins(images, texts)[0], atol=1e-5, rtol=0)


def test_texts_are_cleaned_and_cut_as_in_training(embed):
    assert torch.equal(embed.texts("A RED ball!"), embed.texts("a red ball"))
    assert embed.tokens(["ball " * 500])["input_ids"].shape[1] <= embed.text.max_length


def test_a_match_is_a_probability_and_one_image_serves_many_texts(models):
    match = MatchPipeline(models["retrieval"], batch_size=2)
    texts = ["a red ball", "a blue ball", "green"]
    found = match(image("red"), texts)
    assert [row["text"] for row in found] == texts
    assert all(0 < row["score"] < 1 for row in found)
    each = [match(image("red"), text)[0]["score"] for text in texts]
    assert [row["score"] for row in found] == pytest.approx(each, abs=1e-5)


def test_a_model_that_never_learned_matching_is_not_asked(models):
    match = MatchPipeline(models["retrieval"])
    match.model.config.objective_weights = {"itm": 0.0}
    with pytest.raises(ConfigError, match="trained by contrast alone"):
        match(image("red"), "red")


def test_margins_name_unreadable_images_and_rank_the_rest(models, tmp_path):
    match = MatchPipeline(models["retrieval"], batch_size=2)
    margins, failures = match.margins([image("red"), tmp_path / "no.png", image("blue")], "red")
    assert list(failures) == [1]
    assert margins.isnan().tolist() == [False, True, False]
    with pytest.raises(SampleError, match=r"no\.png"):
        match(tmp_path / "no.png", "red")


def test_answers_come_best_first_with_their_names(models):
    answer = VQAPipeline(models["vqa"], batch_size=2)
    found = answer([image("red")] * 3, ["what colour?", "how many?", "what colour?"], top_k=2)
    assert [row["question"] for row in found] == ["what colour?", "how many?", "what colour?"]
    assert {best["answer"] for row in found for best in row["answers"]} <= {"red", "blue", "two"}
    assert all(row["answers"][0]["score"] >= row["answers"][1]["score"] for row in found)
    assert found[0]["answer"] == found[0]["answers"][0]["answer"]
    assert len(answer(image("red"), "what?", top_k=99)[0]["answers"]) == 3
    with pytest.raises(ConfigError, match="top_k is 0"):
        answer(image("red"), "what?", top_k=0)


def test_images_and_texts_must_pair_up():
    assert pairs("a.png", ["x", "y"]) == (["a.png", "a.png"], ["x", "y"])
    assert pairs(["a.png", "b.png"], "x") == (["a.png", "b.png"], ["x", "x"])
    with pytest.raises(DataError, match="3 images and 2 texts"):
        pairs(["a", "b", "c"], ["x", "y"])


def test_objects_serve_as_well_as_a_folder(embed):
    again = EmbedPipeline(model=embed.model, processor=embed.processor)
    assert torch.equal(again.texts("red"), embed.texts("red"))
    with pytest.raises(ConfigError, match="model folder, or model= and processor="):
        EmbedPipeline(model=embed.model)


def test_objects_that_do_not_belong_together_are_refused(models, embed):
    vqa = VQAPipeline(models["vqa"])
    with pytest.raises(ConfigError, match="takes as model= EVEForVQA or VLEForVQA, not EVEForRetrieval"):
        VQAPipeline(model=embed.model, processor=embed.processor)
    tokenizer = embed.processor.tokenizer
    with pytest.raises(ConfigError, match=r"makes images of 48 pixels, .*; give the processor that was saved"):
        EmbedPipeline(model=embed.model, processor=EVEProcessor.for_size(48, tokenizer))
    with pytest.raises(ConfigError, match="without image_processor"):
        EmbedPipeline(model=embed.model, processor=tokenizer)
    side, known = vqa.model.config.image_size, vqa.model.config.vocab_size
    larger = train_tokenizer([f"{number} words" for number in range(2000)], known + 40)
    with pytest.raises(ConfigError, match=r"has a token of number .*, and the model knows"):
        VQAPipeline(model=vqa.model, processor=EVEProcessor.for_size(side, larger))


def test_another_tokenizer_is_refused_until_the_model_is_trained_with_it(embed, tmp_path):
    tokenizer, side = embed.processor.tokenizer, embed.model.config.image_size
    with tokens_noted(embed.model, tokenizer):
        embed.model.save_pretrained(tmp_path)
    model = EVEForRetrieval.from_pretrained(tmp_path)
    other = train_tokenizer([f"{number} other words" for number in range(2000)], len(tokenizer))
    with pytest.raises(ConfigError, match="not the tokenizer that the model was trained with"):
        EmbedPipeline(model=model, processor=EVEProcessor.for_size(side, other))
    assert len(EmbedPipeline(model=model, processor=embed.processor).texts("red")) == 1
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    assert len(EmbedPipeline(model=model, processor=EVEProcessor.for_size(side, other)).texts("red")) == 1


def test_what_wraps_a_model_does_not_hide_its_class(models):
    peft = pytest.importorskip("peft")
    vqa = VQAPipeline(models["vqa"])
    adapted = peft.get_peft_model(vqa.model, peft.LoraConfig(r=2, target_modules=["qkv"]))
    assert VQAPipeline(model=adapted, processor=vqa.processor)(image("red"), "what?")[0]["answer"]
    assert VQAPipeline(model=torch.compile(vqa.model), processor=vqa.processor).source == ""


def test_a_tensor_is_an_image_only_as_it_was_read(embed):
    pixels = embed.read(image("red"))
    torch.testing.assert_close(embed.images([pixels]), embed.images(image("red")))
    for wrong in (pixels.float(), pixels[:, 1:], pixels.permute(1, 2, 0)[:, :, :2]):
        with pytest.raises(SampleError, match=r"is no image that was read here.*; give a PIL image, a path or encoded"):
            embed.images([wrong])


def test_any_kind_of_bytes_is_an_image(embed):
    data = io.BytesIO()
    image("red").save(data, "PNG")
    expected = embed.images(data.getvalue())
    for kind in (bytearray, memoryview):
        assert torch.equal(embed.images(kind(data.getvalue())), expected)
        assert torch.equal(embed.images([kind(data.getvalue())]), expected)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (None, "None is no text"),
        (b"red", "type bytes is no text"),
        (["red", None], "text 1 is None"),
        ("a \ud800 ball", "half a character at 2"),
    ],
)
def test_what_is_no_text_is_named(models, embed, texts, words):
    with pytest.raises(DataError, match=words):
        embed.texts(texts)
    with pytest.raises(DataError, match=words):
        VQAPipeline(models["vqa"])(image("red"), texts)
    assert len(embed.texts(text for text in ("red", "blue"))) == 2


def test_a_device_that_is_not_there_is_one_line(models):
    with pytest.raises(ConfigError, match=r"device 'gpu' cannot be used here \(.*\); choose cpu"):
        VQAPipeline(models["vqa"], device="gpu")


def test_labels_behind_the_end_of_a_text_are_refused(models):
    classify = ClassifyPipeline(models["retrieval"])
    with pytest.raises(ConfigError, match="'red' and 'blue' are read as one text; their texts are cut after"):
        classify(image("red"), ["red", "blue"], template="word " * 100 + "{}")
    with pytest.raises(ConfigError, match="'red' and 'RED' are read as one text; leave one of them out"):
        classify(image("red"), ["red", "RED"])
    assert len(classify(image("red"), ["red", "blue"])[0]) == 2


def test_an_odd_option_of_the_run_is_one_line_with_its_file(models, tmp_path):
    folder = tmp_path / "vqa"
    shutil.copytree(models["vqa"], folder)
    run = {"config": {"task": {"name": "vqa", "max_test_words": "x"}, "text": {}}}
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(ConfigError, match=r"vqa: task of its run .*run\.json\): max_test_words='x'"):
        VQAPipeline(folder)


def test_a_run_folder_is_as_good_as_its_model_folder(models, tmp_path):
    run = tmp_path / "recipe" / "run"
    shutil.copytree(models["retrieval"], run / "model")
    (run / "config.yaml").write_text("task: {name: retrieval}\ntext: {max_length: 7, clean: false}\n")
    assert model_folder(run) == run / "model"
    assert model_folder(run / "model") == run / "model"
    assert text_options(run).max_length == text_options(run / "model").max_length == 7
    assert EmbedPipeline(run).text.clean is False
    assert text_options(models["retrieval"]).max_length == 40
    with pytest.raises(CheckpointError, match="several runs; give one of them: run"):
        model_folder(run.parent)


@pytest.mark.parametrize("name", ["model", "vle"])
@pytest.mark.parametrize("content", ["text: {max_length: 7}\n", "text: hello\n"])
def test_a_config_yaml_that_is_no_runs_says_nothing(models, tmp_path, monkeypatch, name, content):
    """Many a project has a file of that name, and models beside it."""
    shutil.copytree(models["retrieval"], tmp_path / name)
    (tmp_path / "config.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    assert text_options(name) == text_options(models["retrieval"])


def test_a_runs_model_folder_is_known_from_within(models, tmp_path, monkeypatch):
    shutil.copytree(models["retrieval"], tmp_path / "model")
    (tmp_path / "config.yaml").write_text("task: {name: retrieval}\ntext: {max_length: 7}\n")
    monkeypatch.chdir(tmp_path / "model")
    assert text_options(".").max_length == 7


def test_a_question_is_cut_as_in_the_runs_evaluation(models, tmp_path):
    shutil.copytree(models["vqa"], tmp_path / "model")
    (tmp_path / "config.yaml").write_text("task: {name: vqa, max_test_words: 2}\ntext: {clean: true}\n")
    text = "What colour is it?"
    whole, cut = VQAPipeline(models["vqa"]), VQAPipeline(tmp_path)
    assert cut.task.read_text(text) == whole.task.read_text("what colour") != whole.task.read_text(text)


def test_what_is_no_model_is_refused_in_one_line(models, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        EmbedPipeline(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="neither a model folder"):
        EmbedPipeline(tmp_path)
    with pytest.raises(CheckpointError, match="holds EVEForVQA, but EVEForRetrieval is needed"):
        EmbedPipeline(models["vqa"])
    other = tmp_path / "other"
    shutil.copytree(models["retrieval"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(CheckpointError, match="another family: model_type 'bert'; choose one of: clip, eve"):
        EmbedPipeline(other)
    (other / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        EmbedPipeline(other)


def test_damaged_or_lacking_weights_are_never_made_up(models, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(models["retrieval"], other)
    weights = load_file(other / "model.safetensors")
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lack 1 tensors of EVEForRetrieval, first {name}"):
        EmbedPipeline(other)
    (other / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is a text file, not a checkpoint"):
        EmbedPipeline(other)


def test_an_unfinished_run_says_so(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="has not finished"):
        model_folder(tmp_path)
