"""EVE-Base: activations that a pre-training step keeps per sample, and the largest batch that 80 GB hold; bf16.

On a CPU the tensors that autograd keeps are counted exactly by saved-tensor hooks, each storage once, with fused
attention and grouped experts as a GPU would run them, at batches of 2 and 4. What is alive only inside an operator is
not counted. Fixed: 16 bytes a parameter (weight, gradient, two moments, in float32) and the weights' bfloat16 copies.
"""

import gc
from typing import Any

from benchmarks.case import Case, Setting
from benchmarks.eve_batches import eve_config, masked_pairs
from benchmarks.masked_signal import OBJECTIVES, minimising
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from evle.models.eve import EVEForPreTraining

DTYPES = ("bf16",)
MEMORY = 80e9
PAPER = {"mlm+mim": 224, "mlm+itc+mim": 132, "mlm+itc+itm": 80, "all four": 64}
"""The largest batches of the paper's GPUs (EVE, table 1)."""


def kept_bytes(model: EVEForPreTraining, inputs: dict[str, Tensor], setting: Setting) -> int:
    """Bytes that a forward keeps for its backward, parameters apart."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # without its history, which would hold itself alive

    with saved_tensors_hooks(keep, lambda tensor: tensor), setting.autocast():
        loss = model(**inputs).loss
    del loss
    return sum(size for address, size in kept.items() if address not in known)


def build(setting: Setting) -> Case:
    config = eve_config(setting, 224, objectives=OBJECTIVES["all four"])
    model = EVEForPreTraining(config).train()
    model.set_attn_implementation("sdpa")
    model.set_experts_implementation("grouped_mm")
    parameters = sum(parameter.numel() for parameter in model.parameters())

    def facts() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, objectives in OBJECTIVES.items():
            with minimising(model, objectives):
                gc.collect()
                small, large = (kept_bytes(model, masked_pairs(config, size), setting) for size in (2, 4))
            sample = (large - small) / 2
            fixed = 16 * parameters + small - 2 * sample
            found[f"{name}: MB a sample"] = sample / 1e6
            found[f"{name}: fixed GB"] = fixed / 1e9
            found[f"{name}: largest batch (the paper's {PAPER[name]})"] = max(0, int((MEMORY - fixed) // sample))
        return found

    return Case(ways={}, facts=facts)
