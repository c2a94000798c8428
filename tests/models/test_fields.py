"""A field that has no sense is one clear line, in both families; what is asked of attention is not lost."""

import pytest

from evle.errors import ConfigError
from evle.models.eve import EVEConfig
from evle.models.vle import VLEConfig
from evle.run.prepare import prepare
from micro import SAMPLES, micro_run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": "4"}, "num_experts '4' should be a valid integer"),
        ({"image_size": "64", "capacity_factor": "1"}, "image_size '64' .*; capacity_factor '1' should be a valid num"),
        ({"soft_layers": 3}, "soft_layers 3 should be a valid list"),
        ({"stem_channels": 32}, "stem_channels 32 should be a valid list"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 should be greater than or equal to 1"),
        ({"patch_size": 0}, "patch_size 0 should be greater"),
        ({"hidden_act": "gelo"}, "hidden_act 'gelo' does not exist; did you mean 'gelu'"),
        ({"attn_implementation": "spda"}, "attn_implementation 'spda' does not exist; did you mean 'sdpa'"),
        ({"drop_path_rate": 2}, "drop_path_rate 2 should be less than 1"),
        ({"hidden_size": -192}, "hidden_size -192 should be greater"),
        ({"intermediate_size": 0}, "intermediate_size 0"),
        ({"max_position_embeddings": 0}, "max_position_embeddings 0"),
        ({"decoder_num_layers": -1}, "decoder_num_layers -1"),
        ({"objective_weights": {"mim": -1}}, "objective_weights.mim -1 should be greater than or equal to 0"),
        ({"capacity_factor": 0}, "capacity_factor 0 should be greater than 0"),
    ],
)
def test_a_field_of_eve_without_sense_is_one_line(fields, message):
    with pytest.raises(ConfigError, match=f"^this EVE model cannot be built: {message}"):
        EVEConfig.from_preset("eve-tiny", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_config": {"hidden_size": "128"}}, "Field 'hidden_size' expected int, got str .value: '128'.$"),
        ({"text_config": {"num_attention_heads": 0}}, "text_config.num_attention_heads 0 should be greater"),
        ({"text_config": {"position_buckets": "a"}}, "text_config.position_buckets 'a' should be a valid integer"),
        ({"vision_config": {"hidden_act": "foo"}}, "vision_config.hidden_act 'foo' does not exist"),
        ({"patch_size": 0}, "vision_config.patch_size 0 should be greater"),
        ({"image_size": "64"}, "Field 'image_size' with value '64'"),
        ({"vocab_size": 0, "max_position_embeddings": 0}, "text_config.vocab_size 0 .*max_position_embeddings 0"),
        ({"hidden_size": -1}, "hidden_size -1 should be greater"),
        ({"hidden_act": "foo"}, "hidden_act 'foo' does not exist"),
        ({"attn_implementation": "foo"}, "attn_implementation 'foo' does not exist; choose one of: eager"),
        ({"objective_weights": {"mlm": -1}}, "objective_weights.mlm -1 should be greater"),
        ({"object_classes": "dog"}, "object_classes 'dog' should be a valid list"),
    ],
)
def test_a_field_of_vle_without_sense_is_one_line(fields, message):
    with pytest.raises(ConfigError, match=f"^this VLE model cannot be built: {message}"):
        VLEConfig.from_preset("vle-tiny", **fields)


def test_a_tower_is_a_mapping():
    with pytest.raises(ConfigError, match="text_config 5 must be fields of a configuration"):
        VLEConfig.from_preset("vle-tiny", text_config=5)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path):
    config = micro_run(tmp_path, "vqa", {"model": {"overrides": {"vocab_size": 20}}})
    with pytest.raises(ConfigError, match=r"model\.overrides\.vocab_size=20 is less than the tokenizer's \d+ tokens"):
        prepare(config, samples={"train": SAMPLES["vqa"]()})


@pytest.mark.parametrize("family", ["eve", "vle"])
def test_what_is_asked_of_attention_and_experts_reaches_the_model(family, tmp_path):
    asked = {"attn_implementation": "sdpa"} | ({"experts_implementation": "batched_mm"} if family == "eve" else {})
    config = micro_run(tmp_path, "vqa", {"model": {"overrides": asked}}, family)
    made = prepare(config, samples={"train": SAMPLES["vqa"]()}).loaded.model.config
    assert {name: getattr(made, f"_{name}") for name in asked} == asked
    assert made.with_changes(initializer_range=0.1)._attn_implementation == "sdpa"


def test_attention_or_experts_that_are_not_there_are_one_line(tmp_path):
    for family, name, value in (
        ("eve", "experts_implementation", "foo"),
        ("vle", "attn_implementation", "flex_attention"),
    ):
        config = micro_run(tmp_path, "vqa", {"model": {"overrides": {name: value}}}, family)
        with pytest.raises(ConfigError, match=f"^model.overrides: .*{value}"):
            prepare(config, samples={"train": SAMPLES["vqa"]()})
