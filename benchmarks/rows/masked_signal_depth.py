"""EVE-Base, a masked-signal step by the depth of the pixel decoder: 224 pixels, batch 8, bf16."""

from benchmarks.case import Case, Setting
from benchmarks.masked_signal import depth_case

DTYPES = ("bf16",)


def build(setting: Setting) -> Case:
    return depth_case(setting, batch=8, depths=(4, 2, 8))
