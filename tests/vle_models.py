"""VLE models of the smallest size that still has everything, and batches for each head."""

from typing import Any

import torch
from torch import Tensor

from evle.models.vle import VLEConfig
from evle.models.vle.modeling import VLEPreTrainedModel

TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "position_buckets": 4,
}
VISION: dict[str, Any] = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 28,
    "image_size": 16,
    "patch_size": 4,
}
TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "num_token_types": 6,
    "num_labels": 5,
    "object_classes": ("ball", "cube", "ring"),
}


def tiny(**overrides: Any) -> VLEConfig:
    sub_configs = {
        name: {**base, **overrides.pop(name, {})} for name, base in (("text_config", TEXT), ("vision_config", VISION))
    }
    return VLEConfig.from_preset("vle-base", **{**TINY, **overrides, **sub_configs})


def build(model_class: type[VLEPreTrainedModel], seed: int = 0, **overrides: Any) -> Any:
    """A model whose weights are far from their small initial values, in evaluation mode."""
    torch.manual_seed(seed)
    model = model_class(tiny(**overrides))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "LayerNorm.weight", "temperature")):
                parameter.normal_(std=0.02 if name.endswith("bias") else 0.25)
    return model.eval()


def batch(size: int = 3, length: int = 7, image_size: int = 16, seed: int = 1) -> dict[str, Tensor]:
    """Images and texts; the first text is full, later ones end in padding."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [max(2, length - 2 * row) for row in range(size)]
    attention_mask = torch.tensor([[int(column < real) for column in range(length)] for real in lengths])
    input_ids = torch.randint(5, 50, (size, length), generator=generator) * attention_mask
    pixel_values = torch.randn(size, 3, image_size, image_size, generator=generator)
    return {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}


def pretraining_batch(size: int = 3, length: int = 7) -> dict[str, Tensor]:
    """`batch` with every other word masked, patch labels and an object for each row but the last."""
    inputs = batch(size, length)
    generator = torch.Generator().manual_seed(2)
    chosen = inputs["attention_mask"].bool() & (torch.arange(length) % 2 == 1)
    mpc_patches = torch.rand(size, 16, generator=generator) < 0.3
    mpc_patches[:, 0], mpc_patches[-1] = True, False
    return {
        **inputs,
        "masked_input_ids": inputs["input_ids"].masked_fill(chosen, 3),
        "mlm_labels": inputs["input_ids"].masked_fill(~chosen, -100),
        "pbc_labels": torch.randint(0, 2, (size, 16), generator=generator),
        "mpc_patches": mpc_patches,
        "mpc_labels": torch.tensor([row % 3 for row in range(size - 1)] + [-100]),
        "black": torch.tensor([-1.5, -1.25, -1.0]),
    }


def vcr_batch(
    size: int = 2, candidates: int = 4, length: int = 7, objects: int = 2, seed: int = 3
) -> dict[str, Tensor]:
    """One image a question; each candidate names one or two objects, the second slot is padding in every other one."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randint(3, length + 1, (size, candidates), generator=generator)
    attention_mask = (torch.arange(length) < real[..., None]).long()
    input_ids = torch.randint(5, 50, (size, candidates, length), generator=generator) * attention_mask
    token_type_ids = torch.zeros_like(input_ids)
    token_type_ids[..., 1] = 2
    box_token_types = torch.zeros(size, candidates, objects, dtype=torch.long)
    box_token_types[..., 0] = 2
    if objects > 1:
        box_token_types[:, ::2, 1] = 3
        token_type_ids[:, ::2, 2] = 3
    box_patches = torch.rand(size, candidates, objects, 16, generator=generator) < 0.3
    box_patches[..., 5] = True
    return {
        "pixel_values": torch.randn(size, 3, 16, 16, generator=generator),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "box_patches": box_patches & (box_token_types > 0)[..., None],
        "box_token_types": box_token_types,
    }


def relative_difference(given: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest magnitude."""
    given, expected = given.detach(), expected.detach()
    return float((given.reshape(expected.shape) - expected).abs().max() / expected.abs().max())
