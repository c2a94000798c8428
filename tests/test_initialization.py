"""Where a run's first weights come from; checkpoints of runs are walked through in test_recipe.py."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from evle.errors import ConfigError
from evle.initialization import ModelOptions, build_model, starting_config
from evle.models.eve import EVEForRetrieval

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}
TINY = {**SIZES, "stem_channels": [], "soft_layers": [1], "num_experts": 2}


def test_the_image_side_of_a_preset_starts_from_a_vision_transformer(tmp_path):
    vit = ViTModel(ViTConfig(**SIZES), add_pooling_layer=False)
    vit.save_pretrained(tmp_path)
    options = ModelOptions(preset="eve-tiny", vision=str(tmp_path), overrides=TINY)
    loaded = build_model(EVEForRetrieval, options, starting_config(options), {})
    cls_token = loaded.model.get_parameter("eve.image_embedding.cls_token")
    assert torch.equal(cls_token, vit.embeddings.cls_token.flatten())
    assert "2 blocks started from the vision checkpoint" in loaded.lines()[0]


def test_two_sources_of_weights_are_refused():
    with pytest.raises(ConfigError, match=r"model\.init=runs/a and model\.vision=vit both name weights"):
        starting_config(ModelOptions(init="runs/a", vision="vit"))
