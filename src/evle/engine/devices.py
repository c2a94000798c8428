"""Devices, processes and number formats of a training: the one door to accelerate (DDP, FSDP2, precision, trackers)."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel

from evle.engine.experts import KEY, DividedExperts
from evle.errors import ConfigError, in_one_line
from evle.precision import Precision, resolve_precision

SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16}


def join_processes() -> torch.device:
    """Join the processes of this run when a launcher (accelerate launch, torchrun) started several; say the device.

    Call it before anything asks for the rank, or writes. Without a launcher there is one process.
    """
    return PartialState(cpu=not torch.accelerator.is_available()).device


def build_accelerator(
    precision: Precision, trackers: Sequence[str], folder: Path, *, find_unused_parameters: bool = True
) -> Accelerator:
    """The accelerator of one training, whose `trackers` write into `folder`. Raises ConfigError for what this machine
    cannot do.

    Heads leave parts of the trunk without gradient (a mask token, the other modality's experts), for which
    DistributedDataParallel looks in each step with `find_unused_parameters`.
    """
    gradients = DistributedDataParallelKwargs(
        find_unused_parameters=find_unused_parameters, gradient_as_bucket_view=True
    )
    device = join_processes()
    number_format = resolve_precision(precision, device)
    if number_format == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision=fp16 needs a GPU (the CPU would silently use float32): choose bf16 or no")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != number_format:
        AcceleratorState._reset_state()  # accelerate holds one precision a process; a recipe's stages may differ
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=number_format,
            # The loop accumulates itself: a number from the launcher's settings must not divide the loss again.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[gradients],
            log_with=list(trackers) or None,
            project_dir=str(folder),
        )
    except ValueError as error:
        raise ConfigError(f"train.precision={precision}, train.trackers={list(trackers)}: {error}") from None
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ConfigError("the launcher asks for FSDP version 1, which wraps models otherwise: give it fsdp_version: 2")
    if accelerator.distributed_type == DistributedType.FSDP and number_format in SHORT:
        # accelerate's own policy also rounds losses, and gradients before they are added up.
        policy = MixedPrecisionPolicy(param_dtype=SHORT[number_format], reduce_dtype=torch.float32)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    if len(accelerator.log_with) < len(trackers):
        found = [str(tracker) for tracker in accelerator.log_with]
        raise ConfigError(f"train.trackers={list(trackers)}: of these only {found} are installed")
    if trackers:
        try:
            accelerator.init_trackers("evle")
        except Exception as error:  # whatever a tracker's library raises, without a network or a login
            raise ConfigError(
                f"train.trackers={list(trackers)} cannot start ({in_one_line(error)}); log in, or leave it out"
            ) from None
    return accelerator


def checkpoint_activations(model: PreTrainedModel, on: bool) -> None:
    """Compute activations twice to hold fewer of them, or once again. Raises ConfigError for a model that cannot."""
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"train.gradient_checkpointing: {type(model).__name__} does not support it; set it to false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the newer name is not in every transformers 5
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()


IGNORED = "_ddp_params_and_buffers_to_ignore"
"""The attribute of a module in which DistributedDataParallel looks for the names of parameters to leave alone."""


def divide_experts(accelerator: Accelerator, model: PreTrainedModel, num_parts: int) -> DividedExperts | None:
    """Divide the experts of `model` over `num_parts` processes before it is prepared; None for one part.

    Raises ConfigError for what cannot be divided, or not in this way.
    """
    if num_parts == 1:
        return None
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ConfigError(f"{KEY}={num_parts}: FSDP2 shards experts already; set it to 1, or train without FSDP2")
    if accelerator.mixed_precision == "fp16":
        raise ConfigError(f"{KEY}={num_parts}: fp16 scales the losses of each process on its own; choose bf16")
    experts = DividedExperts(model, num_parts, accelerator.device.type)
    setattr(model, IGNORED, list(experts.parameters))
    return experts
