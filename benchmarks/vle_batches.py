"""VLE models and batches of noise that the rows share."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Setting
from evle.models.vle import VLEConfig

CANDIDATES = 4
"""Answers of a VCR question."""
QUICK: dict[str, Any] = {
    "text_config": {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 96,
        "position_buckets": 4,
    },
    "vision_config": {
        "hidden_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 28,
        "image_size": 32,
        "patch_size": 8,
    },
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}
"""The smallest VLE that has everything."""


def vle_config(setting: Setting, **overrides: Any) -> VLEConfig:
    """VLE-base at 384 pixels, as it was released for VQA and VCR; the smallest model with `setting.quick`."""
    sizes = QUICK if setting.quick else {}
    config = VLEConfig.from_preset("vle-base", **{**overrides, **sizes})
    if not setting.quick:
        config.image_size = 384
    if setting.exact:
        for each in (config, config.text_config):
            each.hidden_dropout_prob = each.attention_probs_dropout_prob = 0.0
        config.text_config.pooler_dropout = 0.0
    return config


def product(config: VLEConfig, rows: int) -> tuple[int, int, int]:
    """The product of a feed-forward's first layer over `rows` tokens."""
    return rows, config.hidden_size, config.intermediate_size


def pairs(config: VLEConfig, size: int, length: int) -> dict[str, Tensor]:
    """Images of noise and texts without padding."""
    generator = torch.Generator().manual_seed(0)
    side = config.image_size
    input_ids = torch.randint(5, config.vocab_size, (size, length), generator=generator)
    return {
        "pixel_values": torch.randn(size, config.num_channels, side, side, generator=generator),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
    }


def pretraining_batch(config: VLEConfig, size: int, length: int) -> dict[str, Tensor]:
    """`pairs` with 15 % of the words masked and an object in every image."""
    generator = torch.Generator().manual_seed(1)
    inputs = pairs(config, size, length)
    words = torch.rand(size, length, generator=generator) < 0.15
    words[:, 1] = True
    patches = torch.rand(size, config.num_patches, generator=generator) < 0.1
    patches[:, 0] = True
    return {
        **inputs,
        "masked_input_ids": inputs["input_ids"].masked_fill(words, 3),
        "mlm_labels": inputs["input_ids"].masked_fill(~words, -100),
        "pbc_labels": patches.long(),
        "mpc_patches": patches,
        "mpc_labels": torch.zeros(size, dtype=torch.long),
        "black": torch.full((config.num_channels,), -1.5),
    }


def vcr_batch(config: VLEConfig, size: int, length: int, objects: int) -> dict[str, Tensor]:
    """One image per question; texts of 3/4 to all of `length` tokens, padded to the longest, each naming `objects`
    objects."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(3 * length // 4, length + 1, (size, CANDIDATES, 1), generator=generator)
    length = int(real.max())
    attention_mask = (torch.arange(length) < real).long()
    input_ids = torch.randint(5, config.vocab_size, (size, CANDIDATES, length), generator=generator) * attention_mask
    types = 2 + torch.arange(objects).expand(size, CANDIDATES, -1)
    token_type_ids = torch.zeros_like(input_ids)
    token_type_ids[..., 1 : 1 + objects] = types
    boxes = torch.rand(size, CANDIDATES, objects, config.num_patches, generator=generator) < 0.2
    boxes[..., 0] = True
    side = config.image_size
    return {
        "pixel_values": torch.randn(size, config.num_channels, side, side, generator=generator),
        "image_rows": torch.arange(size),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "box_patches": boxes,
        "box_token_types": types,
    }
