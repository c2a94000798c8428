"""The processor: any image and any text to the model's tensors."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoProcessor, PreTrainedTokenizerFast

from eve_models import build
from evle.data.images import open_image
from evle.errors import SampleError
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


def white_is_zero(values):
    """A TIFF of one row of 16 bits, in which 0 is white."""
    content = io.BytesIO()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    Image.fromarray(values).save(content, "TIFF", tiffinfo=tags)
    return content.getvalue()


def png(values, transparent, colours=False):
    """A PNG of one row of 16 bits per channel, with a transparent grey or colour."""
    count = len(values) // 3 if colours else len(values)
    header = struct.pack(">IIBBBBB", count, 1, 16, 2 if colours else 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
    parts = ((b"IHDR", header), (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)), (b"IDAT", pixels))
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in (*parts, (b"IEND", b"")))  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("encoded", "colour"),
    [
        (png([1000, 1000], [1000]), 255),
        (png([1000, 2000, 3000] * 2, [1000, 2000, 3000], colours=True), 255),
        (white_is_zero(np.zeros((1, 2), np.uint16)), 255),
    ],
    ids=["grey-16", "colours-16", "white-is-zero"],
)
def test_an_image_is_read_as_training_reads_it(encoded, colour, processor):
    assert open_image(encoded).getpixel((0, 0)) == (colour,) * 3
    opened = Image.open(io.BytesIO(encoded))
    found, expected = (
        processor(images=image, return_tensors="pt").pixel_values for image in (opened, open_image(encoded))
    )
    assert torch.equal(found, expected)


def test_an_image_without_any_number_is_refused(processor):
    nothing = Image.fromarray(np.full((2, 2), np.nan, np.float32))
    with pytest.raises(SampleError, match=r"image in memory \(F, 2 x 2\): damaged image \(no pixel is a number"):
        processor(images=[nothing], return_tensors="pt")


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
