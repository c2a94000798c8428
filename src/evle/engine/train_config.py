"""The section `train` of a configuration: how long to train, on how large batches, and what to keep."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from evle.config import Config
from evle.errors import ConfigError
from evle.precision import Precision

Every = int | Literal["epoch"]


class TrainConfig(Config):
    """How long and how to train. Steps are optimizer steps throughout."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps. Give one of steps, epochs and teraflops."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the data. Give one of steps, epochs and teraflops."""
    teraflops: float | None = Field(None, gt=0)
    """Floating-point operations of the whole training, in 10^12, for comparisons at equal cost. The number of steps
    follows from the operations of the first batches, forward and backward."""
    minutes: float | None = Field(None, gt=0)
    """Stop after this many minutes of training, evaluations not counted, if steps or epochs take longer. The learning
    rate then follows the time, so that it has come down when the time is over; such a run cannot be repeated bit for
    bit."""
    batch_size: int = Field(32, ge=1)
    """Samples per optimizer step, over all processes and micro-batches."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches per optimizer step. More of them need less memory. Contrast still compares all pairs of a step;
    matching draws its hard negatives from one micro-batch of all processes."""
    precision: Precision = "no"
    """Autocast type. fp16 needs a GPU; auto is bf16 where it is faster, else fp16 on a GPU and no on a CPU."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them in memory."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, then faster."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of averaged weights, which are then evaluated and kept; 0 disables averaging."""
    contrast_memory: int = Field(0, ge=0)
    """Pairs of earlier steps whose embeddings contrast compares with, as further negatives: a small batch then learns
    as from a large one (Wang et al. 2020). For steps of one micro-batch."""
    cache_towers: int = Field(0, ge=0)
    """Views of each sample (an augmented image with a text) whose tower states are computed once, before the first
    step, and held in memory; each epoch draws one of them. 0 runs the towers in each step. For VLE with both towers
    frozen, in one process; the towers then run without dropout. An image that is not varied is read once."""
    eval_every: Every = "epoch"
    """Steps between validations, or epoch; 0 validates at the end only."""
    save_every: Every = 500
    """Steps between checkpoints, or epoch; 0 saves at the end only."""
    shard_checkpoints: bool = False
    """Each process writes the part of a checkpoint that it holds. Training waits for it, and no process holds the whole
    model: for models that are sharded (FSDP2) and large. Either kind resumes on any number of processes."""
    expert_parallel: int = Field(1, ge=1)
    """Several processes: the number of them over which the experts of each soft-routed block are divided, with their
    gradients and moments. Tokens travel to their experts and back. 1 keeps all experts in every process."""
    log_every: int = Field(10, ge=1)
    """Steps between log lines. Shorter runs log more often, for at least 20 points."""
    num_workers: int = Field(0, ge=0)
    """Processes that prepare data, for each training process."""
    choose_from: float = Field(0.0, ge=0, le=1)
    """Fraction of training during which validation does not select the best checkpoint, because the learning rate is
    still high."""
    patience: int = Field(0, ge=0)
    """Stop after this many validations without a better score; 0 never stops early."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the run's model."""
    find_unused_parameters: bool = True
    """Several processes: look in each step for parameters without a gradient. False saves that search and a
    synchronisation where every parameter takes part in every step; elsewhere the run stops with an error."""
    trackers: tuple[str, ...] = ()
    """Also log to these trackers of accelerate, such as tensorboard, trackio or wandb."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(length is not None for length in (self.steps, self.epochs, self.teraflops)) != 1:
            raise ValueError("give one of steps, epochs and teraflops, and no more")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size={self.batch_size} is no multiple of accumulation={self.accumulation}")
        if self.expert_parallel > 1 and self.compile:
            raise ValueError(
                f"expert_parallel={self.expert_parallel}: tokens that travel between processes cannot be compiled; set "
                "compile=false"
            )
        if self.contrast_memory and (self.accumulation > 1 or self.shard_checkpoints):
            raise ValueError("contrast_memory works with accumulation=1 and shard_checkpoints=false alone")
        if self.cache_towers and (self.compile or self.teraflops is not None):
            raise ValueError("cache_towers works with compile=false and a length in steps or epochs alone")
        for name in ("eval_every", "save_every"):
            value = getattr(self, name)
            if value != "epoch" and value < 0:
                raise ValueError(f"{name}={value}: must be 0 or more, or epoch")
        return self

    def micro_batch_size(self, num_processes: int) -> int:
        """Rows that one process takes at once: the loader's batch_size.

        Raises:
            ConfigError: the total batch cannot be split evenly.
        """
        parts = self.accumulation * num_processes
        if self.batch_size % parts:
            raise ConfigError(
                f"train.batch_size={self.batch_size} cannot be split over {num_processes} processes x "
                f"{self.accumulation} micro-batches; make it a multiple of {parts}"
            )
        return self.batch_size // parts

    def steps_between_logs(self, num_steps: int) -> int:
        """`log_every`, or less in a short run: a curve has at least 20 points, or one for each step."""
        return min(self.log_every, max(1, num_steps // 20))

    def num_steps(self, num_batches: int) -> int:
        """Optimizer steps of the whole training, for epochs of `num_batches` micro-batches."""
        return self.steps or max(1, round((self.epochs or 0) * math.ceil(num_batches / self.accumulation)))
