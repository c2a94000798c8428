"""Which number format matrix products run in: what "auto" means on the machine at hand."""

from typing import Literal

import torch

Precision = Literal["auto", "no", "bf16", "fp16"]


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" stands for on `device`; any other value as it is.

    bf16 where the hardware multiplies it faster than float32: elsewhere it is emulated, on a CPU without it up to 40
    times slower. Older GPUs get fp16, with a scaled loss; other CPUs float32 ("no").
    """
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "bf16" if _cpu_multiplies_bf16() else "no"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16"


def _cpu_multiplies_bf16() -> bool:
    """Whether bfloat16 is faster than float32. AVX-512's instruction for it alone is about twice as fast on AMD; on an
    Intel without AMX products reached 0.5 to 0.6 of float32's rate, and training steps of eve-tiny 0.77."""
    capabilities = torch.cpu.get_capabilities()
    if any(capabilities.get(name, False) for name in ("amx_bf16", "bf16", "arm_bf16")):
        return True
    return bool(capabilities.get("avx512_bf16", False)) and "intel" not in capabilities.get("cpu_name", "").lower()
