"""Where a model looked: the measures against naive loops, the maps against the model's own, and the sheet."""

import numpy as np
import pytest
import torch
from PIL import Image

from evle.errors import ConfigError, SampleError
from evle.models.eve import EVEConfig, EVEForVQA
from evle.models.vle import VLEForITM, VLEForPreTraining, VLEForVQA
from evle.pipelines import LocalisePipeline, VQAPipeline
from evle.pipelines.attention_maps import fusion_rollout, gradient_relevance, rollout
from evle.pipelines.explaining import TILE, ExplainPipeline, Explanation
from retrieval_models import SIZES, processor, save_vqa_model
from vle_folders import ANSWERS, plain_image, save_released


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    fields = {"id2label": dict(enumerate(ANSWERS)), "num_hidden_layers": 2}
    return {"eve": save_vqa_model(root / "eve"), "vle": save_released(root / "vle", VLEForVQA, **fields)}


def random_map(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


# --- the measures


def test_rollout_is_half_kept_half_attended_layer_by_layer():
    first, second = random_map(3, 3, 0), random_map(3, 3, 1)
    expected = torch.zeros(3, 3)
    for end in range(3):
        for middle in range(3):
            for start in range(3):
                one = 0.5 * second[end, middle] + 0.5 * (end == middle)
                other = 0.5 * first[middle, start] + 0.5 * (middle == start)
                expected[end, start] += one * other
    torch.testing.assert_close(rollout([first, second]), expected)
    torch.testing.assert_close(rollout([first, second]).sum(dim=1), torch.ones(3))


def test_the_fusions_rollout_is_that_of_one_joint_sequence():
    # A block is two layers of one sequence [text, image]: each stream to itself, then to what the other held before.
    num_text, num_image = 2, 3
    own = {"text": random_map(2, 2, 0), "image": random_map(3, 3, 1)}
    blocks = [
        {
            "text_self": random_map(2, 2, 10 + i),
            "text_to_image": random_map(2, 3, 20 + i),
            "image_self": random_map(3, 3, 30 + i),
            "image_to_text": random_map(3, 2, 40 + i),
        }
        for i in range(2)
    ]
    held = torch.block_diag(0.5 * own["text"] + 0.5 * torch.eye(2), 0.5 * own["image"] + 0.5 * torch.eye(3))
    for block in blocks:
        selves = torch.block_diag(block["text_self"], block["image_self"])
        after = 0.5 * held + 0.5 * selves @ held
        cross = torch.zeros(5, 5)
        cross[:num_text, num_text:] = block["text_to_image"]
        cross[num_text:, :num_text] = block["image_to_text"]
        held = 0.5 * after + 0.5 * cross @ held
    maps = {name: [each] for name, each in own.items()} | {name: [b[name] for b in blocks] for name in blocks[0]}
    torch.testing.assert_close(fusion_rollout(maps), held[:num_text, num_text:])
    assert held.shape == (num_text + num_image,) * 2
    torch.testing.assert_close(held.sum(dim=1), torch.ones(5))


# --- the maps


def test_eves_maps_are_its_attention_from_words_to_patches(folders):
    explain = ExplainPipeline(folders["eve"])
    found = explain(plain_image(), "what COLOUR, red ball?", method="attention")
    assert found.words == ["what", "colour", "red", "ball"]
    assert found.framing == "whole"
    tokens = explain.tokens(["what colour red ball"])
    explain.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = explain.model(explain.pixel_values([explain.read(plain_image())]), **tokens, output_attentions=True)
    last = output.attentions[-1][0].mean(dim=0)  # (S, S), 4 patches and [CLS] first
    torch.testing.assert_close(torch.from_numpy(found.whole).flatten(), last[5, 1:5], atol=1e-5, rtol=0)
    offsets = explain.processor.tokenizer("what colour red ball").word_ids()
    for word, given in enumerate(found.maps):
        rows = [5 + place for place, index in enumerate(offsets) if index == word]
        expected = sum(last[row, 1:5] for row in rows) / len(rows)
        torch.testing.assert_close(torch.from_numpy(given).flatten(), expected, atol=1e-5, rtol=0)


def test_vles_maps_are_its_cross_attention_from_words_to_patches(folders):
    explain = ExplainPipeline(folders["vle"])
    found = explain(plain_image(), "What is the floor?", method="attention")
    assert found.words == ["What", "is", "the", "floor", "?"]
    assert found.framing == "centre"
    assert found.maps.shape == (5, 4, 4)
    with torch.no_grad():
        pixels = explain.pixel_values([explain.read(plain_image())])
        output = explain.model(pixel_values=pixels, **explain.tokens(["What is the floor?"]), output_attentions=True)
    last = output.attentions["text_to_image"][-1][0].mean(dim=0)
    torch.testing.assert_close(torch.from_numpy(found.whole).flatten(), last[0, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["eve", "vle"])
def test_maps_are_shares_of_attention_and_tell_images_apart(folders, family):
    explain = ExplainPipeline(folders[family])
    found = explain(plain_image(), "a photo of dogs")
    assert (found.maps >= 0).all()
    assert (found.maps.sum(axis=(1, 2)) < 1).all()
    other = explain(plain_image().rotate(180), "a photo of dogs")
    assert np.abs(found.maps - other.maps).max() > 1e-6
    again = explain(plain_image(), "a photo of dogs")
    assert np.array_equal(found.maps, again.maps)


def test_a_model_that_reads_its_answer_at_a_slot_is_explained_by_it(tmp_path):
    reader = processor()
    answers = {"id2label": {0: "red", 1: "blue"}, "vqa_slot": True}
    torch.manual_seed(0)
    EVEForVQA(EVEConfig(**SIZES, vocab_size=len(reader.tokenizer), **answers)).save_pretrained(tmp_path)
    reader.save_pretrained(tmp_path)
    explain = ExplainPipeline(tmp_path)
    found = explain(plain_image(), "what colour", method="attention")
    asked = VQAPipeline(tmp_path)
    tokens = asked.tokens(["what colour"])
    slot = tokens["input_ids"][0].tolist().index(reader.tokenizer.mask_token_id)
    asked.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = asked.model(asked.pixel_values([asked.read(plain_image())]), **tokens, output_attentions=True)
    last = output.attentions[-1][0].mean(dim=0)
    torch.testing.assert_close(torch.from_numpy(found.whole).flatten(), last[5 + slot, 1:5], atol=1e-5, rtol=0)
    assert found.words == ["what", "colour"]


def test_the_models_way_of_attending_is_put_back(folders):
    explain = ExplainPipeline(folders["eve"])
    explain.model.set_attn_implementation("sdpa")
    explain(plain_image(), "a ball")
    assert explain.model.config._attn_implementation == "sdpa"


def test_a_model_with_its_head_is_explained_by_its_backbone(folders):
    whole = VLEForVQA.from_pretrained(folders["vle"])
    by_folder = ExplainPipeline(folders["vle"])
    by_object = ExplainPipeline(model=whole, processor=by_folder.processor)
    assert np.array_equal(by_folder(plain_image(), "dogs").maps, by_object(plain_image(), "dogs").maps)


def test_a_long_text_is_cut_as_the_model_cuts_it(tmp_path):
    explain = ExplainPipeline(save_released(tmp_path / "itm", VLEForITM))
    assert len(explain(plain_image(), "dogs " * 300).words) < 96


def test_what_cannot_be_explained_is_refused(folders, tmp_path):
    explain = ExplainPipeline(folders["eve"])
    with pytest.raises(ConfigError, match="unknown method 'rolout'; did you mean 'rollout'"):
        explain(plain_image(), "a ball", method="rolout")
    with pytest.raises(
        ConfigError, match=r"'pbc' needs a VLE pre-trained with pbc; .* has rollout, attention, gradient"
    ):
        explain(plain_image(), "a ball", method="pbc")
    with pytest.raises(SampleError, match="contains no word"):
        explain(plain_image(), "?!")
    with pytest.raises(SampleError, match=r"none\.png"):
        explain(tmp_path / "none.png", "a ball")


def test_gradient_relevance_is_that_of_a_naive_loop():
    maps = [torch.stack([random_map(3, 3, 10 * layer + head) for head in range(2)]) for layer in range(2)]
    slopes = [torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(layer)) for layer in range(2)]
    expected = torch.eye(3)
    for attention, slope in zip(maps, slopes, strict=True):
        weighted = torch.zeros(3, 3)
        for head in range(2):
            for i in range(3):
                for j in range(3):
                    weighted[i, j] += max(0.0, float(attention[head, i, j] * slope[head, i, j])) / 2
        expected = expected + weighted @ expected
    torch.testing.assert_close(gradient_relevance(maps, slopes), expected)


def test_the_gradient_explains_the_answer_that_the_pipeline_gives(folders):
    explain, asked = ExplainPipeline(folders["eve"]), VQAPipeline(folders["eve"])
    assert explain.methods == ("rollout", "attention", "gradient")
    found = explain(plain_image(), "what colour", method="gradient")
    expected = asked(plain_image(), "what colour")[0]
    assert found.answer == expected["answer"]
    assert found.score == pytest.approx(expected["score"], abs=1e-5)
    assert (found.maps >= 0).all()
    assert found.whole.max() > 0
    assert all(parameter.grad is None for parameter in explain.model.parameters())


def test_a_model_that_locates_is_explained_by_its_patches(tmp_path):
    folder = save_released(tmp_path / "vle", VLEForPreTraining, objectives=["mlm", "itm", "pbc"])
    explain = ExplainPipeline(folder)
    assert explain.methods == ("rollout", "attention", "pbc")
    found = explain(plain_image(), "red ball", method="pbc")
    expected = LocalisePipeline(folder)([plain_image()] * 2, ["red ball", "ball"])
    np.testing.assert_allclose(found.whole, expected[0].scores, atol=1e-5)
    np.testing.assert_allclose(found.maps[1], expected[1].scores, atol=1e-5)
    assert found.answer == "match"


# --- the sheet


def explanation(words: list[str]) -> Explanation:
    maps = np.zeros((len(words), 2, 2), dtype=np.float32)
    maps[:, 0, 0] = 0.1
    image = Image.new("RGB", (60, 40), "white")
    return Explanation(image, " ".join(words), words, maps, np.full((2, 2), 0.2, np.float32), "whole")


def test_the_sheet_shows_the_image_the_whole_text_and_every_word():
    sheet = np.asarray(explanation(["one", "two", "three"]).to_image())
    height = round(40 * TILE / 60)
    assert sheet.shape[1] == 4 * (TILE + 8) + 8
    assert sheet.shape[0] == 2 * (height + 22 + 8) + 8  # five tiles in rows of four
    first, whole, word = (sheet[8 : 8 + height, 8 + i * (TILE + 8) : 8 + i * (TILE + 8) + TILE, 0] for i in range(3))
    assert (first == 255).all()
    assert (whole == 255).all()  # even attention is bright all over
    assert word[5, 5] == 255  # the patch that the word looked at
    assert word[-5, -5] < 80


def test_a_word_that_is_too_long_is_cut_to_its_image():
    sheet = np.asarray(explanation(["w" * 200]).to_image())
    assert (sheet[-25:, -8:] == 255).all()


def test_the_page_holds_a_map_for_every_word_and_needs_no_other_file(tmp_path):
    page = explanation(["one", "<b>two"]).save(tmp_path / "new" / "page.html").read_text()
    assert page.count('<input type="radio"') == 4  # the image, all words, and two words
    assert page.count("data:image/webp;base64,") == 4
    assert "&lt;b&gt;two" in page
    assert "<script" not in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "0.1 share of attention" in page
