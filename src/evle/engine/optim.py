"""The optimiser: which parameter learns how fast, which decays, and how the learning rate moves with the steps."""

import math
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from evle.config import Config, refuse_no_pattern
from evle.engine.depth import layers_below_top
from evle.engine.muon import Muon
from evle.errors import ConfigError, nearest

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class OptimConfig(Config):
    """AdamW and its schedule. Betas, epsilon and weight decay are EVE's for fine-tuning (lr varies by task).

    `muon` moves chosen matrices along their orthogonalised momentum instead (Jordan et al. 2024, scaled to AdamW's step
    as Liu et al. 2025, arXiv 2502.16982): an option of ours for short runs from random weights.
    """

    lr: Positive = 3e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's two moments."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay of the parameters that decay."""
    no_decay: tuple[str, ...] = (r"bias$",)
    """Patterns (re.search on a parameter's name) of parameters that never decay. Vectors never decay, whatever their
    name."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay of the learning rate after warm-up."""
    power: Positive = 1.0
    """Exponent of the linear decay: 2 is quadratic."""
    min_lr: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Final learning rate, as a fraction of the peak."""
    warmup: NotNegative = 0.1
    """Linear warm-up: a fraction of all steps if below 1, else a number of steps."""
    clip: NotNegative = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    lr_mult: Positive = 1.0
    """Multiplier of the learning rate for parameters that the initial checkpoint did not hold."""
    lr_mult_patterns: dict[str, NotNegative] = Field({})
    """Multipliers of the learning rate by pattern (re.search on a parameter's name). The first match applies; 0 freezes
    the parameter."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Multiplier of the learning rate for each layer further from the top (BEiT's layer-wise decay); 1 trains all
    layers equally fast. Towers are below the layers that fuse them, and heads keep the full rate."""
    muon: tuple[str, ...] = ()
    """Patterns (re.search on a name) of matrices, stacks of matrices or convolution kernels that Muon updates if they
    decay. AdamW updates all others."""
    muon_lr: Positive | None = None
    """Muon's peak learning rate; by default lr."""

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas={list(self.betas)}: each must be at least 0 and below 1")
        for pattern in (*self.no_decay, *self.lr_mult_patterns, *self.muon):
            refuse_no_pattern(pattern)
        return self


class MuonAdamW(Optimizer):
    """Muon for some matrices and AdamW for the rest, as one optimizer: one list of groups, one state."""

    def __init__(self, muon: Muon, adamw: AdamW):
        self.parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimizer's groups and state; only Muon's groups have `momentum`."""
        for part in self.parts:
            part.state = self.state
            part.param_groups = [
                group for group in self.param_groups if ("momentum" in group) == (part is self.parts[0])
            ]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "the training loop has no closure"
        for part in self.parts:
            part.step()


def build_optimizer(
    model: nn.Module, config: OptimConfig, new_parameters: Collection[str] = (), *, fused: bool = False
) -> Optimizer:
    """AdamW over the parameters of `model` that are trained, in groups of equal learning rate and decay; with
    `config.muon` a `MuonAdamW`.

    A parameter does not decay when it is a vector (as many elements as its longest side: biases, norm scales,
    LayerScale, [CLS] and mask tokens, a temperature) or its name matches `no_decay` (the biases of stacked experts are
    matrices). This holds EVE's rule, no decay on biases and norms, and its like for what EVE's code does not name.

    `new_parameters` are the names that the initial checkpoint did not hold; they learn `lr_mult` times faster, on top
    of what `lr_mult_patterns` and `layer_decay` say.

    Raises:
        ConfigError: nothing is trained, or a pattern of `lr_mult_patterns` or `muon` matches no parameter it is for.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise ConfigError("the model has no parameter to train: all are frozen; name fewer in model.freeze")
    for pattern in config.lr_mult_patterns:
        if not any(re.search(pattern, name) for name in named):
            tops = {name.split(".")[0] for name in named}
            raise ConfigError(f"optim.lr_mult_patterns: {pattern!r} matches no parameter; {nearest(pattern, tops)}")

    matrices = {
        name
        for name, parameter in named.items()
        if parameter.ndim in (2, 3, 4)
        and _decays(name, parameter, config)
        and any(re.search(pattern, name) for pattern in config.muon)
    }
    if config.muon and not matrices:
        raise ConfigError(
            f"optim.muon: {', '.join(config.muon)} matches no matrix of the model, such as {next(iter(named))}"
        )

    depths = layers_below_top(model) if config.layer_decay < 1 else dict.fromkeys(named, 0)
    groups: dict[tuple[bool, float, float], list[str]] = {}
    for name, parameter in named.items():
        peak = config.muon_lr if name in matrices and config.muon_lr else config.lr
        lr = peak * _multiplier(name, config, new_parameters) * config.layer_decay ** depths[name]
        weight_decay = config.weight_decay if _decays(name, parameter, config) else 0.0
        groups.setdefault((name in matrices, lr, weight_decay), []).append(name)
    settings: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for (is_matrix, lr, weight_decay), names in groups.items():
        group = {"params": [named[name] for name in names], "lr": lr, "weight_decay": weight_decay}
        settings[is_matrix].append(group)
    adamw = AdamW(settings[False], betas=config.betas, eps=config.eps, fused=fused or None)
    return MuonAdamW(Muon(settings[True]), adamw) if matrices else adamw


def skip_update_unless_finite(optimizer: Optimizer, numbers: Tensor) -> None:
    """Let the next step of a fused AdamW change nothing if one of `numbers` is not finite, decided on the device.

    The host reads the numbers only later, and stops the run then; other optimizers are stepped by then.
    """
    adamw: Any = optimizer.parts[1] if isinstance(optimizer, MuonAdamW) else optimizer
    if adamw.defaults.get("fused"):
        adamw.found_inf = (~torch.isfinite(numbers).all()).float()


def build_schedule(
    optimizer: Optimizer, config: OptimConfig, num_steps: int, pace: Callable[[], float] = float
) -> LambdaLR:
    """The schedule of `num_steps` optimizer steps: call `.step()` after each of them, not after each micro-batch.

    `pace()` is the share of the time that is over, of a training that has one to keep; by default 0.
    """
    return LambdaLR(optimizer, lambda step: lr_share(step, config, num_steps, pace()))


def lr_share(step: int, config: OptimConfig, num_steps: int, pace: float = 0.0) -> float:
    """The share of the peak learning rate that optimizer step `step` (from 0 to num_steps - 1) uses.

    Warm-up rises from 1/w in the first step to 1 in step w - 1, so that no step is wasted on a rate of 0. Where the
    time will end before the steps do, `pace`, the share of it that is over, is ahead of the share of the steps, and
    the rate follows it; a warm-up of a number of steps takes these steps all the same.

    >>> config = OptimConfig(schedule="linear", warmup=2)
    >>> [lr_share(step, config, num_steps=6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    >>> [lr_share(step, config, num_steps=6, pace=step / 4) for step in range(4)]
    [0.5, 1.0, 0.75, 0.375]
    """
    warmup = num_warmup_steps(config, num_steps)
    position = max(step, pace * num_steps)
    warmed = position if config.warmup < 1 else step
    if warmed < warmup:
        return min(1.0, (warmed + 1) / warmup)
    left = min(1.0, max(0.0, (num_steps - position) / max(1, num_steps - warmup)))
    if config.schedule == "constant":
        return 1.0
    share = left**config.power if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
    return config.min_lr + (1 - config.min_lr) * share


def num_warmup_steps(config: OptimConfig, num_steps: int) -> int:
    """Warm-up in optimizer steps: a share of `num_steps` below 1, a number of steps from 1 (at most all of them)."""
    if config.warmup < 1:
        return round(config.warmup * num_steps)
    return min(num_steps, round(config.warmup))


def _decays(name: str, parameter: nn.Parameter, config: OptimConfig) -> bool:
    is_vector = parameter.numel() == max(parameter.shape, default=1)
    return not is_vector and not any(re.search(pattern, name) for pattern in config.no_decay)


def _multiplier(name: str, config: OptimConfig, new_parameters: Collection[str]) -> float:
    matching = (value for pattern, value in config.lr_mult_patterns.items() if re.search(pattern, name))
    return next(matching, 1.0) * (config.lr_mult if name in new_parameters else 1.0)
