"""How far from the top each parameter is."""

import pytest
from torch import nn

from eve_models import build as build_eve
from evle.engine.depth import layers_below_top
from evle.engine.optim import OptimConfig, build_optimizer
from evle.errors import ConfigError
from evle.models.eve import EVEForPreTraining
from evle.models.vle import VLEForVQA
from tower_models import tower_config


def test_eves_embeddings_are_below_its_layers_and_its_heads_above():
    model = build_eve(EVEForPreTraining, stem_channels=(4, 8))  # of three layers
    distances = layers_below_top(model)
    assert distances.keys() == {name for name, _ in model.named_parameters()}
    for part, distance in {
        "mlm_head.0.weight": 0,
        "decoder.layers.0.attention.qkv.weight": 0,
        "eve.norm.weight": 0,
        "eve.layers.2.attention.qkv.weight": 1,
        "eve.layers.0.attention.qkv.weight": 3,
        "eve.text_embedding.word.weight": 4,
        "eve.image_embedding.patch.weight": 4,
    }.items():
        assert distances[part] == distance, part
    assert {value for name, value in distances.items() if "stem" in name} == {4}


@pytest.mark.parametrize("vision", ["clip", "timm-vit", "swin"])
def test_vles_towers_are_below_its_fusion(vision):
    distances = layers_below_top(VLEForVQA(tower_config(vision, "bert")))
    stages = {"swin": 2}.get(vision, 1)
    assert {value for name, value in distances.items() if not name.startswith("vle.")} == {0}
    assert distances["vle.cross_modal_text_layers.1.attention.self.query.weight"] == 1
    assert distances["vle.cross_modal_image_layers.0.attention.self.query.weight"] == 2
    assert distances["vle.token_type_embeddings.weight"] == 3
    assert distances["vle.text_model.encoder.layer.0.attention.self.query.weight"] == 3
    assert distances["vle.text_model.embeddings.word_embeddings.weight"] == 4
    assert {value for name, value in distances.items() if "vle.vision_model" in name} == set(range(3, 4 + stages))


def test_the_learning_rate_shrinks_with_each_layer():
    model = build_eve(EVEForPreTraining)
    config = OptimConfig(lr=1.0, layer_decay=0.5, lr_mult=3.0)
    optimizer = build_optimizer(model, config, ["eve.layers.1.attention.qkv.weight"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(each)]: group["lr"] for group in optimizer.param_groups for each in group["params"]}
    assert rates["mlm_head.0.weight"] == 1.0
    assert rates["eve.layers.2.attention.qkv.weight"] == 0.5
    assert rates["eve.layers.1.attention.qkv.weight"] == 3 * 0.25
    assert rates["eve.text_embedding.word.weight"] == 0.5**4


def test_a_model_without_layers_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.layer_decay: Linear has no stack of layers; set it to 1"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(layer_decay=0.9))
