"""EVE-Base's soft-routed layer alone, forward, 1,024 to 65,536 tokens: the time is linear in the tokens.

Beside it dense feed-forwards of the same active work (each token through two of them), and the textbook's loop.
"""

from collections.abc import Callable

import torch
from benchmarks.case import OURS, TEXTBOOK, Case, Setting, relative_difference
from benchmarks.eve_batches import eve_config, product
from benchmarks.textbook.equal import gradient_differences
from benchmarks.textbook.eve import MixtureOfExperts
from torch import Tensor

from evle.models.eve.routing import FeedForward, SoftRouter

NOTE = """
Two of 32 experts are active per token, but the weights of all are read and in bfloat16 cast (0.03 s of the 0.18 s for
1,024 tokens): an expert has 64 rows for its 9 MB of weights at 1,024 tokens and 256 at 4,096, and such products run
at a lower rate than those of a dense feed-forward. From 4,096 tokens on experts run one after the other without
gradients, as the textbook does; before, the layer held 7.3 GB of rows at 65,536 tokens. Not tried: keeping the
experts in bfloat16 between forwards.
"""
"""What limits this row, from a profile, and what was tried."""

TOKENS = (1024, 4096, 16384, 65536)


def build(setting: Setting) -> Case:
    config = eve_config(setting, 224)
    layer = initialized(SoftRouter(config))
    textbook = MixtureOfExperts(layer, config.hidden_act)
    dense = [FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act) for _ in range(2)]
    sizes = (16, 64) if setting.quick else TOKENS
    states = {number: torch.randn(1, number, config.hidden_size) for number in sizes}
    ways: dict[str, Callable[[], None]] = {}
    base: dict[str, str] = {}
    for number, hidden in states.items():
        for name, run in (
            (OURS, lambda hidden=hidden, number=number: layer(hidden, number // 2, None)),
            (TEXTBOOK, lambda hidden=hidden, number=number: textbook(hidden, number // 2, None)),
            ("two dense feed-forwards", lambda hidden=hidden: [each(hidden) for each in dense]),
        ):
            way = f"{name}, {number:,} tokens"
            ways[way], base[way] = setting.forward(run), f"{OURS}, {number:,} tokens"

    def differences() -> dict[str, float]:
        return compare(layer, textbook, states[sizes[0]])

    return Case(
        ways=ways,
        base=base,
        product=product(config, sizes[1]),
        unit="tokens",
        units={way: float(number) for way, number in zip(ways, [each for each in sizes for _ in range(3)])},
        differences=differences,
        model=layer,
    )


def initialized(layer: SoftRouter) -> SoftRouter:
    """A layer outside of a model, whose router spreads its tokens over all experts."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith("norm"):
                parameter.normal_(std=0.05)
    return layer


def compare(layer: SoftRouter, textbook: MixtureOfExperts, hidden: Tensor) -> dict[str, float]:
    output, routing = layer(hidden, hidden.shape[1] // 2, None)
    other, balance = textbook(hidden, hidden.shape[1] // 2, None)
    (output.square().mean() + routing.balance).backward()
    (other.square().mean() + balance).backward()
    return {
        "output": relative_difference(other, output),
        "balance": relative_difference(balance, routing.balance),
        **gradient_differences(layer, textbook),
    }
