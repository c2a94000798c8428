"""What "auto" precision means."""

import pytest
import torch

from evle import precision
from evle.precision import resolve_precision

CPU = torch.device("cpu")


def test_a_named_precision_stays_as_it_is():
    assert [resolve_precision(name, CPU) for name in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({}, "no"),
        ({"avx2": True, "avx512_f": True}, "no"),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16"),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "no"),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16"),
        ({"arm_bf16": True}, "bf16"),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_it_multiplies_it_faster(monkeypatch, capabilities, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) == chosen


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_computes_in_fp16(monkeypatch, native, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert precision.resolve_precision("auto", torch.device("cuda")) == chosen
