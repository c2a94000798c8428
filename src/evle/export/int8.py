"""Weights of a graph in 8 bits (dynamic quantisation): a quarter of the size, and faster products on a CPU."""

import logging
from pathlib import Path

from evle.errors import CheckpointError, ConfigError, in_one_line

PRODUCTS = ["MatMul", "Gemm"]
"""What is quantised: products with constant weights. Embeddings, norms and convolutions stay as they are."""


def quantise(source: Path, target: Path) -> None:
    """Write the graph `source` with the weights of its products in 8 bits, one scale per output, to `target`.

    Activations are quantised as they come (per call), so no calibration data is needed. Raises ConfigError without
    onnxruntime, CheckpointError for a graph that cannot be quantised.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ConfigError(f"{error.name} is missing; install it with pip install 'evle[export]'") from None
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # its advice is for those who calibrate
    try:
        quantize_dynamic(source, target, op_types_to_quantize=PRODUCTS, per_channel=True, weight_type=QuantType.QInt8)
    except Exception as error:
        raise CheckpointError(f"{source.name}: cannot be quantised ({in_one_line(error)})") from error
    finally:
        root.setLevel(level)
