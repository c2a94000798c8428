"""EVE-Base, a pre-training step by masked signals (mlm+mim) against other objectives: 224 pixels, batch 8, bf16.

Half of the words and 75 % of the patches are masked; the decoder has 4 layers of width 512. The paper's hours an epoch
on 8 A100 (EVE, table 1): mlm+mim 2.14, mlm+itc+itm 6.88 (3.2 times), all four 7.73 (3.6 times).
"""

from benchmarks.case import Case, Setting
from benchmarks.masked_signal import objectives_case

DTYPES = ("bf16",)
NOTE = ""


def build(setting: Setting) -> Case:
    return objectives_case(setting, batch=8)
