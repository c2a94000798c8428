"""The processor: any image and any text to the model's tensors."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoProcessor, PreTrainedTokenizerFast

from eve_models import build
from evle.models.eve import EVEForVQA, EVEProcessor

WORDS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "red": 5, "ball": 6}


@pytest.fixture
def processor() -> EVEProcessor:
    words = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    return EVEProcessor.for_size(16, tokenizer)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_a_image_of_any_mode_becomes_normalised_rgb(processor, mode):
    pixels = processor(images=Image.new(mode, (30, 20)), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_values_are_scaled_to_minus_one_to_one(processor):
    white = processor(images=Image.new("RGB", (30, 20), "white"), return_tensors="pt").pixel_values
    assert torch.allclose(white, torch.ones(1))
    half = Image.fromarray(np.full((4, 4), 65535 // 2, dtype=np.uint16))
    assert processor(images=half, return_tensors="pt").pixel_values.abs().max() < 0.01
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert torch.allclose(processor(images=clear, return_tensors="pt").pixel_values, torch.ones(1))


def test_options_reach_whom_they_belong_to(processor):
    image = Image.new("RGB", (30, 20))
    output = processor(
        text=["a red ball", "ball"],
        images=[image, image],
        padding="max_length",
        max_length=7,
        truncation=True,
        return_tensors="pt",
    )
    assert set(output) == {"pixel_values", "input_ids", "attention_mask"}
    assert output.input_ids.tolist() == [[1, 4, 5, 6, 2, 0, 0], [1, 6, 2, 0, 0, 0, 0]]
    assert output.attention_mask.sum(1).tolist() == [5, 3]


def test_how_the_last_call_truncated_is_not_saved(processor, tmp_path):
    processor(text="a red ball", padding="max_length", max_length=3, truncation=True)
    processor.save_pretrained(tmp_path)
    assert EVEProcessor.from_pretrained(tmp_path)(text="a red ball").input_ids == [1, 4, 5, 6, 2]


def test_text_or_images_alone_are_enough(processor):
    assert set(processor(text="a ball")) == {"input_ids", "attention_mask"}
    assert set(processor(images=Image.new("RGB", (4, 4)))) == {"pixel_values"}


def test_its_output_is_the_models_input(processor):
    inputs = processor(
        text=["a red ball", "ball"], images=[Image.new("RGB", (4, 4))] * 2, padding=True, return_tensors="pt"
    )
    assert build(EVEForVQA, num_labels=3)(**inputs).logits.shape == (2, 3)


def test_a_saved_processor_loads_back_also_by_auto_processor(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    build(EVEForVQA).save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8))
    expected = processor(text="a red", images=image, return_tensors="pt")
    for loaded in (EVEProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, EVEProcessor)
        assert loaded.image_processor.size["height"] == 16
        given = loaded(text="a red", images=image, return_tensors="pt")
        assert all(torch.equal(given[name], expected[name]) for name in expected)
