"""The same at batch 16, without the textbook."""

from benchmarks.case import Case, Setting
from benchmarks.masked_signal import objectives_case

DTYPES = ("bf16",)


def build(setting: Setting) -> Case:
    return objectives_case(setting, batch=16, with_textbook=False)
