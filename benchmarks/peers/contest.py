"""What both contests have in common: samples, contenders, and training within a budget of processor time."""

import hashlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evle.data.samples import Samples
from evle.run.prepare import Prepared

Batch = Mapping[str, Tensor]
SCRATCH_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
WARMUP, WEIGHT_DECAY = 0.05, 0.05
CHANCE = "chance of {}"
"""The name of the chance of a score, in the scores of a result."""
SMALL_VIT = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
"""ViT-Tiny's width and heads (DeiT, table 1), and a third of its layers."""
SMALL_BERT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
"""BERT-Tiny (Turc et al. 2019)."""


class Contender(nn.Module):
    """A model that learns from evle's batches: `loss` is minimised, the rest is what the contest's scores need."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Trained:
    """A trained contender with the task that scores it, and what its training took: steps, and seconds of processor
    time."""

    contender: Any
    ready: Prepared
    steps: int
    seconds: float


@dataclass(frozen=True)
class Contest:
    """One comparison. `train` takes a contender's name, learning rate, seed and seconds; `score` gives the scores of
    its result on samples, of which `chosen_by` decides on the learning rate and the closest pair. A trial has the mean
    of its scores on each part of `tuning`."""

    name: str
    title: str
    about: Mapping[str, str]
    rates: Mapping[str, tuple[float, ...]]
    scores: tuple[str, ...]
    chosen_by: str
    learned: Samples
    tuning: Sequence[Samples]
    tests: Mapping[str, Samples]
    train: Callable[[str, float, int, float], Trained]
    score: Callable[[Trained, Samples], dict[str, float]]
    notes: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What a result depends on beside its name, learning rate, seed and minutes. Each result holds it, so that those of
    another command are not taken for those of this one."""
    own_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By contender, what its results alone depend on."""

    def settings_of(self, name: str) -> dict[str, Any]:
        """What the results of a contender depend on."""
        return {**self.settings, **self.own_settings.get(name, {})}

    def run(self, name: str, rate: float, seed: int, minutes: float, is_trial: bool) -> dict[str, Any]:
        """One training of a contender. A trial is scored on the tuning samples, another run on the test splits."""
        trained = self.train(name, rate, seed, 60 * minutes)
        weights = list(trained.contender.parameters())
        facts = {
            "peer": name,
            "rate": rate,
            "seed": seed,
            "minutes": minutes,
            "seconds": round(trained.seconds, 1),
            "steps": trained.steps,
            "parameters": sum(each.numel() for each in weights),
            "trained": sum(each.numel() for each in weights if each.requires_grad),
            "image size": trained.ready.task.image_size,
            "samples": len(self.learned),
            "settings": self.settings_of(name),
        }
        if is_trial:
            tuned = [self.score(trained, samples) for samples in self.tuning]
            return facts | {"tuning": {name: statistics.fmean(each[name] for each in tuned) for name in tuned[0]}}
        return facts | {"tests": {split: self.score(trained, samples) for split, samples in self.tests.items()}}


def train(contender: Contender, ready: Prepared, rate: float, seed: int, seconds: float) -> Trained:
    """Train for `seconds` of processor time, by AdamW with a cosine over that time."""
    torch.manual_seed(seed)
    weights = [each for each in contender.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=WEIGHT_DECAY)
    contender.train()
    started, steps = time.process_time(), 0
    for epoch in itertools.count():
        for batch in ready.loader.batches(epoch):
            spent = time.process_time() - started
            if spent >= seconds:
                return Trained(contender, ready, steps, spent)
            done = spent / seconds
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (done + 1e-3) / WARMUP) * (1 + math.cos(math.pi * done)) / 2
            loss = contender.loss(ready.task.on_device(batch, contender.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    raise AssertionError("epochs have no end")


class Chosen(Sequence):
    """Samples of a source at some of its indices."""

    def __init__(self, source: Samples, indices: Sequence[int]):
        self.source, self.indices = source, list(indices)
        self.fingerprint = hashlib.blake2b(
            repr((getattr(source, "fingerprint", ""), self.indices)).encode(), digest_size=8
        ).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.source[each] for each in self.indices[index]]
        return self.source[self.indices[index]]


def spread(samples: Samples, number: int) -> Chosen:
    """At most `number` samples, evenly spread."""
    number = min(number, len(samples))
    return Chosen(samples, [index * len(samples) // number for index in range(number)])


def divided(samples: Samples, size: int) -> list[Chosen]:
    """The samples in parts of at most `size`, each evenly spread over all of them."""
    count = math.ceil(len(samples) / size)
    return [Chosen(samples, range(part, len(samples), count)) for part in range(count)]
