"""VLE's processor: images in CLIP's way, text as SentencePiece splits it, released directories as they are."""

import json
import pickle
import random
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from evle.data.images import open_image
from evle.errors import CheckpointError
from evle.models.vle import VLEForVQA, VLEProcessor
from evle.models.vle.tokenization import read_sentencepiece
from evle.transforms.text import encode_words
from vle_models import build

sentencepiece = pytest.importorskip("sentencepiece", reason="the library that tokenization is held against")

WORDS = [
    "the",
    "a",
    "red",
    "blue",
    "ball",
    "cube",
    "is",
    "are",
    "near",
    "café",
    "naïve",
    "left",
    "right",
    "of",
    "and",
    "what",
    "where",
    "who",
    "standing",
    "table",
    "person",
    "dog",
    "runs",
    "quickly",
    "1984",
    "don't",
    "it's",
    "can",
    "fine",
    "Mr.",
    "word",
]
TEXTS = [
    "",
    " ",
    "the red ball",
    "  the   red  ball ",
    "Ｔｈｅ ｒｅｄ ｂａｌｌ",
    "red\u00a0ball",
    "wait… what",
    "ﬁne",
    "é e\u0301 naïve café",
    "\tball\n the\r\n",
    "a\u200bb",
    "①② ½ ㎏",
    "한국어 텍스트 と 日本語",
    "😀 ball 👍🏽",
    "don’t “quote”",
    "\u3000x\u2003y",
    "the\x00ball",
    "▁ball ▁",
    "ﾊﾟ ﷺ",
    "unknown ζ ξ symbols",
]


def train(folder, **options) -> None:
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=12)) for _ in range(1000)]
    pieces = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    pieces |= {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    defaults = {"vocab_size": 120, "hard_vocab_limit": False, "model_type": "unigram", "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "spm"), **{**defaults, **pieces, **options}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory as released: weights, the SentencePiece model, and the settings of the old library."""
    folder = tmp_path_factory.mktemp("released")
    train(folder)
    build(VLEForVQA, vocab_size=200).save_pretrained(folder)
    image = {"crop_size": 16, "size": 16, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
    image |= {"do_center_crop": True, "do_normalize": True, "do_resize": True}
    image |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "preprocessor_config.json").write_text(json.dumps(image), encoding="utf-8")
    settings = {"do_lower_case": False, "tokenizer_class": "DebertaV2Tokenizer", "vocab_type": "spm"}
    settings |= {"mask_token": "[MASK]", "split_by_punct": False, "sp_model_kwargs": {}}
    settings |= {"cls_token": {"__type": "AddedToken", "content": "[CLS]", "lstrip": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pieces(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))


@pytest.fixture(scope="module")
def processor(folder) -> VLEProcessor:
    return VLEProcessor.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_split_as_sentencepiece_splits_it(text, processor, pieces):
    given = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert given == pieces.encode(text)


DECOMPOSED = [
    "Ｆ\u0301 ﾊﾟﾋﾞ",  # marks behind full-width and half-width forms
    "½\u0304 ™\u0332",
    unicodedata.normalize("NFD", "café naïve đặt tiếng Việt"),
    unicodedata.normalize("NFD", "한국어 텍스트"),  # as macOS names files
    unicodedata.normalize("NFD", "ガラスのダンス"),
    "हिन्दी \u0600عربي👩\u200d🔬",
]


@pytest.mark.parametrize("text", DECOMPOSED)
def test_characters_and_their_marks_are_composed_as_sentencepiece_composes_them(text, tmp_path):
    train(tmp_path, byte_fallback=True, vocab_size=400)  # every character shows in the tokens
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    assert read_sentencepiece(tmp_path / "spm.model")(text, add_special_tokens=False).input_ids == pieces.encode(text)


# The known differences: a space's own sign in the text where the table of characters leaves it alone; a line feed
# behind a carriage return, which is one grapheme, where spaces are counted.
@pytest.mark.parametrize(
    ("options", "but"),
    [
        ({"normalization_rule_name": "identity"}, "▁"),
        ({"normalization_rule_name": "nfkc_cf"}, "▁"),
        ({"add_dummy_prefix": False}, "-"),
        ({"remove_extra_whitespaces": False}, "\r"),
        ({"byte_fallback": True, "vocab_size": 400}, "-"),
        ({"split_by_whitespace": False, "vocab_size": 300}, "-"),
    ],
    ids=str,
)
def test_every_setting_of_a_sentencepiece_model_is_followed(options, but, tmp_path):
    train(tmp_path, **options)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    tokenizer = read_sentencepiece(tmp_path / "spm.model")
    texts = [text for text in [*TEXTS[2:], "the red ball is near the blue cube"] if but not in text]
    assert len(texts) > 15
    for text in texts:
        assert tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text), text


@pytest.mark.parametrize("options", [{}, {"split_by_whitespace": False, "vocab_size": 300}], ids=str)
def test_words_begin_behind_blanks_also_where_pieces_may_span_them(options, tmp_path):
    train(tmp_path, **options)
    tokenizer = read_sentencepiece(tmp_path / "spm.model")
    ids, starts = encode_words(tokenizer, "the zebra is near  the qx blue cube", 80)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert starts == [token in ("[CLS]", "[SEP]") or token.startswith("▁") for token in tokens]
    assert False in starts


def test_special_tokens_are_debertas(processor, pieces):
    tokenizer = processor.tokenizer
    red, ball = pieces.encode("red"), pieces.encode("ball")
    assert tokenizer("red").input_ids == [1, *red, 2]
    pair = tokenizer("red", "ball", return_token_type_ids=True)
    assert pair.input_ids == [1, *red, 2, *ball, 2]
    assert pair.token_type_ids == [0] * (2 + len(red)) + [1] * (1 + len(ball))
    assert tokenizer.mask_token_id == pieces.get_piece_size() == len(tokenizer) - 1
    assert tokenizer("red [MASK] ball").input_ids == [1, *red, tokenizer.mask_token_id, *ball, 2]
    assert tokenizer.pad_token_id == 0
    assert tokenizer.decode(tokenizer("the red ball").input_ids, skip_special_tokens=True) == "the red ball"


def test_the_released_calls_work_and_fit_the_model(folder, processor):
    image = Image.new("RGB", (30, 20))
    inputs = processor(text=["the red ball", "ball"], images=[image, image], return_tensors="pt", padding=True)
    assert set(inputs) == {"pixel_values", "input_ids", "attention_mask"}
    assert inputs.pixel_values.shape == (2, 3, 16, 16)
    model = VLEForVQA.from_pretrained(folder)
    assert model(**inputs).logits.shape == (2, 5)
    assert model(**processor(text="ball", images=image, return_tensors="pt", padding=True)).logits.shape == (1, 5)
    cut = processor(text=["the red ball"], padding="max_length", max_length=4, truncation=True, return_tensors="pt")
    assert cut.input_ids.shape == (1, 4)


def test_a_image_is_resized_to_its_shortest_edge_and_cropped_in_the_centre(processor):
    """A wide image, black but for its middle third: only the middle is seen."""
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, 16:32] = 255
    seen = processor(images=Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    assert torch.allclose(seen, ((1 - mean) / deviation)[:, None, None].expand_as(seen), atol=1e-5)
    half = processor(images=Image.fromarray(pixels[::2, ::2].repeat(1, 0)), return_tensors="pt").pixel_values[0]
    assert half.shape == (3, 16, 16)
    assert half[0, 8, 8] > half[0, 8, 0] - 1e-4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_a_image_of_any_mode_is_taken(processor, mode):
    assert processor(images=Image.new(mode, (30, 20)), return_tensors="pt").pixel_values.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ([0.0, 0.25, 1.0], np.float32),
        ([0.0, 80.0, 255.0], np.float32),
        ([np.nan, 300.0, 70000.0], np.float32),
        ([0, 80, 200], np.int32),
        ([0, 300, 70000], np.int32),
        ([0, 80, 200], np.uint16),
    ],
)
def test_a_image_of_numbers_is_as_bright_as_everywhere_else(values, form, processor):
    image = Image.fromarray(np.array([values], dtype=form))
    found, expected = (processor(images=each, return_tensors="pt").pixel_values for each in (image, open_image(image)))
    assert torch.equal(found, expected)


def test_the_processor_of_a_size(processor):
    made = VLEProcessor.for_size(24, processor.tokenizer)
    assert made(images=Image.new("RGB", (100, 50)), return_tensors="pt").pixel_values.shape == (1, 3, 24, 24)
    assert made.image_processor.do_center_crop


def test_a_saved_processor_loads_back_also_by_auto_processor(folder, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    VLEForVQA.from_pretrained(folder).save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8))
    expected = processor(text="the red… ｂａｌｌ [MASK]", images=image, return_tensors="pt")
    for loaded in (
        VLEProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(folder),
    ):
        assert isinstance(loaded, VLEProcessor)
        given = loaded(text="the red… ｂａｌｌ [MASK]", images=image, return_tensors="pt")
        for name in expected:
            assert torch.equal(given[name], expected[name]), name


def test_a_converted_tokenizer_is_read_as_it_is(folder, processor, pieces, tmp_path):
    """`tokenizer.json` of an old library beside a configuration that names DeBERTa's own tokenizer."""
    processor.tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name in ("preprocessor_config.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    loaded = VLEProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded.tokenizer, PreTrainedTokenizerFast)
    for text in TEXTS:
        assert loaded.tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text)
    assert loaded.tokenizer.mask_token_id == processor.tokenizer.mask_token_id
    assert loaded.tokenizer.cls_token == "[CLS]"


def test_added_tokens_keep_their_ids(folder, pieces, tmp_path):
    size = pieces.get_piece_size()
    tokenizer = read_sentencepiece(folder / "spm.model", added={"[OBJ]": size + 1, "[MASK]": size})
    assert (tokenizer.mask_token_id, tokenizer.convert_tokens_to_ids("[OBJ]")) == (size, size + 1)
    with pytest.raises(CheckpointError, match=rf"gives '\[MASK\]' the id {size + 5}, the model {size}"):
        read_sentencepiece(folder / "spm.model", added={"[MASK]": size + 5})


def test_a_lower_casing_tokenizer_does_so(folder):
    tokenizer = read_sentencepiece(folder / "spm.model", {"do_lower_case": True})
    assert tokenizer("THE Ball").input_ids == tokenizer("the ball").input_ids


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"no model at all", None, "spm.model: not a SentencePiece model"),
        (b"", None, "it has no unknown piece"),
        (None, {"split_by_punct": True}, "asks for split_by_punct"),
    ],
)
def test_a_tokenizer_that_cannot_be_followed_is_refused(folder, content, settings, message, tmp_path):
    path = tmp_path / "spm.model"
    path.write_bytes((folder / "spm.model").read_bytes() if content is None else content)
    with pytest.raises(CheckpointError, match=message):
        read_sentencepiece(path, settings)


def test_a_model_of_another_kind_is_refused(tmp_path):
    train(tmp_path, model_type="bpe")
    with pytest.raises(CheckpointError, match="of type 2; DeBERTa's are unigram"):
        read_sentencepiece(tmp_path / "spm.model")


def test_saved_files_are_those_that_transformers_4_reads(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    pictures = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert pictures["image_processor_type"] == "CLIPImageProcessor"
    assert pictures["crop_size"] == {"height": 16, "width": 16}
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = VLEProcessor.from_pretrained(tmp_path)
    assert again.tokenizer("the red ball").input_ids == processor.tokenizer("the red ball").input_ids
    assert AutoTokenizer.from_pretrained(tmp_path)("red").input_ids == processor.tokenizer("red").input_ids


@pytest.mark.parametrize("lower_case", [False, True])
def test_the_sentencepiece_model_is_saved_beside_what_was_made_of_it(folder, processor, lower_case, tmp_path):
    tokenizer = read_sentencepiece(folder / "spm.model", {"do_lower_case": lower_case})
    tokenizer.add_tokens(["[OBJ]"], special_tokens=True)
    VLEProcessor(processor.image_processor, pickle.loads(pickle.dumps(tokenizer))).save_pretrained(tmp_path)
    assert (tmp_path / "spm.model").read_bytes() == (folder / "spm.model").read_bytes()
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["do_lower_case"] == lower_case
    size = tokenizer.mask_token_id  # what transformers 4 gives the first token without a piece
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == {"[MASK]": size, "[OBJ]": size + 1}
    text = "THE red… ｂａｌｌ [MASK] [OBJ]"
    for loaded in (VLEProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert loaded.tokenizer(text).input_ids == tokenizer(text).input_ids
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


def test_without_a_sentencepiece_model_none_is_written(processor, tmp_path):
    plain = PreTrainedTokenizerFast(tokenizer_object=processor.tokenizer.backend_tokenizer)
    VLEProcessor(processor.image_processor, plain).save_pretrained(tmp_path)
    assert not (tmp_path / "spm.model").exists()
