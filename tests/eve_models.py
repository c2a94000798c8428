"""EVE models of the smallest size that still has everything: hard and soft blocks, weights that matter."""

from typing import Any

import torch
from torch import Tensor

from evle.models.eve import EVEConfig
from evle.models.eve.modeling import EVEPreTrainedModel

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "max_position_embeddings": 12,
    "soft_layers": (2,),
    "num_experts": 4,
    "decoder_hidden_size": 16,
    "decoder_num_layers": 1,
    "decoder_num_heads": 2,
}


def tiny(**overrides: Any) -> EVEConfig:
    return EVEConfig(**{**TINY, **overrides})


def build(model_class: type[EVEPreTrainedModel], seed: int = 0, **overrides: Any) -> Any:
    """A model whose branches and router are far from their small initial values, in evaluation mode."""
    torch.manual_seed(seed)
    model = model_class(tiny(**overrides))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_scale", "norm.weight", "temperature")):
                continue
            parameter.normal_(std=0.02 if name.endswith("bias") else 0.2)
        for layer in getattr(model, "eve", model).layers:
            layer.attention_scale.fill_(0.5)
            layer.feed_forward_scale.fill_(0.5)
    return model.eval()


def batch(size: int = 3, length: int = 7, image_size: int = 16, seed: int = 1) -> dict[str, Tensor]:
    """Images and texts; the first text is full, later ones end in padding."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [max(2, length - 2 * row) for row in range(size)]
    attention_mask = torch.tensor([[int(column < real) for column in range(length)] for real in lengths])
    input_ids = torch.randint(5, 50, (size, length), generator=generator) * attention_mask
    pixel_values = torch.randn(size, 3, image_size, image_size, generator=generator)
    return {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}


def pretraining_batch(size: int = 3, length: int = 7, masked: int = 12) -> dict[str, Tensor]:
    """`batch` with masks: `masked` of the 16 patches, every other real token."""
    inputs = batch(size, length)
    generator = torch.Generator().manual_seed(2)
    image_mask = torch.zeros(size, 16, dtype=torch.bool)
    for row in image_mask:
        row[torch.randperm(16, generator=generator)[:masked]] = True
    chosen = inputs["attention_mask"].bool() & (torch.arange(length) % 2 == 1)
    return {
        **inputs,
        "image_mask": image_mask,
        "masked_input_ids": inputs["input_ids"].masked_fill(chosen, 3),
        "mlm_labels": inputs["input_ids"].masked_fill(~chosen, -100),
    }


def relative_difference(given: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest magnitude."""
    given, expected = given.detach(), expected.detach()
    return float((given.reshape(expected.shape) - expected).abs().max() / expected.abs().max())
