"""EVE models and batches of noise that the rows share."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Setting
from evle.models.eve import EVEConfig

QUICK: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "patch_size": 8,
    "max_position_embeddings": 48,
    "soft_layers": (2,),
    "num_experts": 4,
    "decoder_hidden_size": 16,
    "decoder_num_layers": 1,
    "decoder_num_heads": 2,
    "initializer_range": 0.2,
    "layer_scale_init": 1.0,
}
"""The smallest EVE that has everything; its weights are large enough that every part of it counts."""
EXACT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0}


def eve_config(setting: Setting, image_size: int, **overrides: Any) -> EVEConfig:
    """EVE-Base for images with a side of `image_size` pixels; the smallest model with `setting.quick`."""
    sizes = {**QUICK, "image_size": 32} if setting.quick else {"image_size": image_size}
    exact = EXACT if setting.exact else {}
    return EVEConfig.from_preset("eve-base", **{**overrides, **sizes, **exact, "second_choice": "top"})


def pairs(config: EVEConfig, size: int, length: int = 40, real: int = 12) -> dict[str, Tensor]:
    """Images of noise and texts of `real` tokens, padded to `length`."""
    generator = torch.Generator().manual_seed(0)
    attention_mask = (torch.arange(length) < real).long().expand(size, -1).contiguous()
    side = config.image_size
    return {
        "pixel_values": torch.randn(size, config.num_channels, side, side, generator=generator),
        "input_ids": torch.randint(5, config.vocab_size, (size, length), generator=generator) * attention_mask,
        "attention_mask": attention_mask,
    }


def masked_pairs(config: EVEConfig, size: int, length: int = 40) -> dict[str, Tensor]:
    """Images and texts without padding: 75 % of the patches masked, half of the words, all pairs true."""
    generator = torch.Generator().manual_seed(0)
    inputs = pairs(config, size, length, length)
    image_rank = torch.rand(size, config.num_patches, generator=generator).argsort(dim=1)
    words = torch.rand(size, length - 2, generator=generator).argsort(dim=1) < (length - 2) / 2  # not [CLS], not [SEP]
    text_mask = torch.nn.functional.pad(words, (1, 1))
    return {
        **inputs,
        "image_mask": image_rank < round(0.75 * config.num_patches),
        "masked_input_ids": inputs["input_ids"].masked_fill(text_mask, 3),
        "mlm_labels": inputs["input_ids"].masked_fill(~text_mask, -100),
    }


def product(config: EVEConfig, rows: int) -> tuple[int, int, int]:
    """The product of a feed-forward's first layer over `rows` tokens."""
    return rows, config.hidden_size, config.intermediate_size
