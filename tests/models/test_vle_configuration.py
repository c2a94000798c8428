"""VLE's configuration: the published sizes, and the towers' fields within reach."""

import json

import pytest
import torch
from transformers import AutoConfig

from evle.errors import ConfigError
from evle.models.eve import EVEConfig
from evle.models.presets import PRESETS
from evle.models.vle import VLEConfig, VLEForPreTraining, VLEModel
from vle_models import tiny


@pytest.mark.parametrize(("preset", "published"), [("vle-base", 378_328_320), ("vle-large", 930_356_224)])
def test_a_preset_has_exactly_the_published_number_of_parameters(preset, published):
    with torch.device("meta"):
        model = VLEModel(VLEConfig.from_preset(preset))
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_the_smallest_preset_is_for_a_cpu():
    model = VLEModel(VLEConfig.from_preset("vle-tiny"))
    assert 2e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6


@pytest.mark.parametrize("preset", [name for name, (family, _) in PRESETS.items() if family == "vle"])
def test_every_preset_can_be_built_and_survives_json(preset, tmp_path):
    config = VLEConfig.from_preset(preset, num_labels=3, object_classes=["ball"], objective_weights={"mpc": 0.5})
    config.save_pretrained(tmp_path)
    for loaded in (VLEConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, VLEConfig)
        before, after = config.to_dict(), loaded.to_dict()
        assert {**before, "_name_or_path": ""} == {**after, "_name_or_path": ""}
    assert (loaded.objectives, loaded.object_classes) == (("mlm", "itm", "mpc", "pbc"), ("ball",))
    assert loaded.weight_of("mpc") == 0.5
    assert loaded.weight_of("pbc") == 1.0


def test_what_is_written_names_also_what_is_a_default(tmp_path):
    """The released code has other defaults than this library."""
    VLEConfig().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == "vle"
    assert written["text_config"]["model_type"] == "deberta-v2"
    assert written["vision_config"]["model_type"] == "clip_vision_model"
    assert written["text_config"]["vocab_size"] == 128100
    assert written["vision_config"]["hidden_act"] == "quick_gelu"
    assert written["layer_norm_eps"] == 1e-12


def test_fields_of_a_tower_can_be_read_and_set_on_the_whole():
    config = tiny(image_size=32, vocab_size=70)
    assert (config.image_size, config.vision_config.image_size, config.num_patches) == (32, 32, 64)
    assert (config.vocab_size, config.text_config.vocab_size) == (70, 70)
    assert (config.patch_size, config.max_position_embeddings, config.pad_token_id) == (4, 24, 0)
    config.image_size = 48
    assert config.vision_config.image_size == 48


def test_a_changed_copy_leaves_the_original_alone():
    config = tiny(num_labels=5)
    changed = config.with_changes(image_size=32, vocab_size=60, num_labels=7, text_config={"num_hidden_layers": 1})
    assert (changed.image_size, changed.vocab_size, changed.num_labels) == (32, 60, 7)
    assert changed.text_config.num_hidden_layers == 1
    assert changed.text_config.position_buckets == config.text_config.position_buckets == 4
    assert (config.image_size, config.vocab_size, config.num_labels) == (16, 50, 5)
    assert config.text_config.num_hidden_layers == 2
    answers = changed.with_changes(id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
    assert answers.id2label == {0: "yes", 1: "no"}


def test_a_whole_clip_gives_its_image_tower_and_what_is_no_encoder_is_refused():
    vision = tiny().vision_config.to_dict()
    config = VLEConfig(vision_config={"model_type": "clip", "projection_dim": 8, "vision_config": vision})
    assert config.vision_config.to_dict() == vision
    for fields, message in (
        ({"text_config": {"model_type": "gpt2"}}, "'gpt2', which is not a text encoder such as DeBERTa-v3, BERT"),
        ({"text_config": {"model_type": "t5"}}, "'t5', which is not a text encoder"),
        ({"text_config": {"model_type": "bert", "is_decoder": True}}, "'bert', which is not a text encoder"),
        ({"vision_config": {"model_type": "bert"}}, "'bert', which is not an image encoder such as CLIP, SigLIP"),
        ({"text_config": {"model_type": "brt"}}, "unknown model_type 'brt'; did you mean 'bert'"),
    ):
        with pytest.raises(ConfigError, match=message):
            VLEConfig(**fields)


def test_a_given_tower_configuration_is_not_written_to():
    vision = tiny().vision_config
    assert VLEConfig(vision_config=vision, image_size=32).image_size == 32
    assert vision.image_size == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"imge_size": 3}, "'imge_size' .did you mean 'image_size'"),
        ({"text_config": {"vocabsize": 3}}, "text_config.'vocabsize' .did you mean 'vocab_size'"),
        ({"hidden_size": 25}, "hidden_size 25 is not a multiple of num_attention_heads 3"),
        ({"image_size": 18}, "image_size 18 is not a multiple of patch_size 4"),
        ({"objectives": ("mln",)}, "unknown objective 'mln'"),
        ({"num_token_types": 1}, "must be at least 2"),
        ({"pooling": "max"}, "pooling 'max' is not one of cls, mean"),
        ({"text_projection_init": "eye"}, "text_projection_init 'eye' is not one of normal, identity"),
        ({"object_classes": ("a", "a")}, "contains a duplicate"),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**fields)


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'vle-tiny'"):
        VLEConfig.from_preset("vle-tny")


def test_pretraining_needs_classes_and_an_objective():
    with pytest.raises(ConfigError, match="mpc needs object_classes"):
        VLEForPreTraining(tiny(object_classes=()))
    with pytest.raises(ConfigError, match="nothing to minimise"):
        VLEForPreTraining(tiny(objectives=()))


def test_an_unknown_field_is_one_short_line():
    with pytest.raises(ConfigError, match=r"^no such field of a VLE model: 'nope' \(they are listed in docs/vle.md\)$"):
        VLEConfig.from_preset("vle-tiny", nope=1)
    with pytest.raises(ConfigError, match=r"text_config.'zzz' \(they are listed in the DebertaV2Config of transf"):
        VLEConfig.from_preset("vle-tiny", text_config={"zzz": 1})
    with pytest.raises(ConfigError, match=r"'pattch_size' \(did you mean 'patch_size'\?\)"):
        VLEConfig.from_preset("vle-tiny", pattch_size=8)
    with pytest.raises(
        ConfigError, match=r"^no such field of an EVE model: 'nope' \(they are listed in docs/eve.md\)$"
    ):
        EVEConfig.from_preset("eve-tiny", nope=1)
