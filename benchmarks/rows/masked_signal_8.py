"""EVE-Base, a pre-training step by masked signals (mlm+mim) against other objectives: 224 pixels, batch 8, bf16.

Half of the words and 75 % of the patches are masked; the decoder has 4 layers of width 512. The paper's hours an epoch
on 8 A100 (EVE, table 1): mlm+mim 2.14, mlm+itc+itm 6.88 (3.2 times), all four 7.73 (3.6 times).
"""

from benchmarks.case import Case, Setting
from benchmarks.masked_signal import objectives_case

DTYPES = ("bf16",)
NOTE = """
Feed-forwards take 32 % of the step, experts 29 %, attention's projections 18 % and its softmax and products 5 %, the
decoder 6 %, embedding 4 %; casts and copies are 13 % of all. Experts were 33 % of the step: an eighth of it copied
their gradients into one tensor, once per pass. They are now written there directly, and cast once for both passes.
What remains is that each of 32 experts reads 9 MB of weights for 45 (masked image) or 118 (masked text) tokens. Tried
without gain: casting each expert right before its product instead (1.39 s of processor time for both passes of a
layer, against 1.21 s; before 1.48 s). Not tried: looking up the words of both passes together (each lookup's gradient
writes 197 MB of zeros, 4 % of the step), and sharing the embedding among the passes of matching (1.7 %).
"""
"""What limits this row, from a profile, and what was tried."""


def build(setting: Setting) -> Case:
    return objectives_case(setting, batch=8)
