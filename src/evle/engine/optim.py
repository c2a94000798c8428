"""The optimiser: which parameter learns how fast, which decays, and how the learning rate moves with the steps."""

import math
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from evle.config import Config
from evle.engine.muon import Muon
from evle.errors import ConfigError, nearest

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class OptimConfig(Config):
    """AdamW and its schedule. Betas, epsilon and weight decay are EVE's for fine-tuning (lr varies by task).

    `muon` moves chosen matrices along their orthogonalised momentum instead (Jordan et al. 2024, scaled to AdamW's step
    as Liu et al. 2025, arXiv 2502.16982): an option of ours for short runs from random weights.
    """

    lr: Positive = Field(3e-5, description="the learning rate at its peak")
    betas: tuple[float, float] = Field((0.9, 0.98), description="decay rates of AdamW's two moments")
    eps: Positive = Field(1e-8, description="AdamW's epsilon")
    weight_decay: NotNegative = Field(0.01, description="decoupled weight decay of the parameters that decay")
    no_decay: tuple[str, ...] = Field(
        (r"bias$",),
        description="patterns (re.search on a parameter's name) that never decay; vectors never do whatever their name",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="the learning rate's way down")
    power: Positive = Field(1.0, description="the linear way down to this power: 2 is quadratic")
    min_lr: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="where the way down ends, a share of the peak")
    warmup: NotNegative = Field(0.1, description="linear warm-up: below 1 a share of all steps, else steps")
    clip: NotNegative = Field(1.0, description="the gradient's largest norm; 0 does not clip")
    lr_mult: Positive = Field(1.0, description="multiplies the learning rate of parameters that no checkpoint held")
    lr_mult_patterns: dict[str, float] = Field(
        {},
        description="pattern (re.search on a name) -> multiplier of the learning rate; the first that matches counts",
    )

    muon: tuple[str, ...] = Field(
        (),
        description="patterns (re.search on a name) of matrices, stacks of them, or kernels of convolutions that "
        "learn by Muon if they decay; AdamW is for all others",
    )
    muon_lr: Positive | None = Field(None, description="Muon's learning rate at its peak; by default lr")

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas={list(self.betas)}: each must be at least 0 and below 1")
        for pattern in (*self.no_decay, *self.lr_mult_patterns, *self.muon):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern {pattern!r} is no regular expression ({error})") from None
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


def build_optimizer(model: nn.Module, config: OptimConfig, new_parameters: Collection[str] = ()) -> Optimizer:
    """AdamW over the parameters of `model` that are trained, in groups of equal learning rate and decay; with
    `config.muon` a `MuonAdamW`.

    A parameter does not decay when it is a vector (as many elements as its longest side: biases, norm scales,
    LayerScale, [CLS] and mask tokens, a temperature) or its name matches `no_decay` (the biases of stacked experts are
    matrices). This holds EVE's rule, no decay on biases and norms, and its like for what EVE's code does not name.

    `new_parameters` are the names that the initial checkpoint did not hold; they learn `lr_mult` times faster, on top
    of what `lr_mult_patterns` says.

    Raises:
        ConfigError: nothing is trained, or a pattern of `lr_mult_patterns` or `muon` matches no parameter it is for.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not named:
        raise ConfigError("the model has no parameter to train: all are frozen")
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

    groups: dict[tuple[bool, float, float], list[str]] = {}
    for name, parameter in named.items():
        peak = config.muon_lr if name in matrices and config.muon_lr else config.lr
        lr = peak * _multiplier(name, config, new_parameters)
        weight_decay = config.weight_decay if _decays(name, parameter, config) else 0.0
        groups.setdefault((name in matrices, lr, weight_decay), []).append(name)
    settings: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for (is_matrix, lr, weight_decay), names in groups.items():
        group = {"params": [named[name] for name in names], "lr": lr, "weight_decay": weight_decay}
        settings[is_matrix].append(group)
    adamw = AdamW(settings[False], betas=config.betas, eps=config.eps)
    return MuonAdamW(Muon(settings[True]), adamw) if matrices else adamw


def build_schedule(optimizer: Optimizer, config: OptimConfig, num_steps: int) -> LambdaLR:
    """The schedule of `num_steps` optimizer steps: call `.step()` after each of them, not after each micro-batch."""
    return LambdaLR(optimizer, lambda step: lr_share(step, config, num_steps))


def lr_share(step: int, config: OptimConfig, num_steps: int) -> float:
    """The share of the peak learning rate that optimizer step `step` (from 0 to num_steps - 1) uses.

    Warm-up rises from 1/w in the first step to 1 in step w - 1, so that no step is wasted on a rate of 0.

    >>> config = OptimConfig(schedule="linear", warmup=2)
    >>> [lr_share(step, config, num_steps=6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warmup = num_warmup_steps(config, num_steps)
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, (num_steps - step) / max(1, num_steps - warmup))
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
