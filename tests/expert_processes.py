"""What the tests of expert parallelism run in several processes; importable by spawned processes."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eve_models import build
from evle.distributed import gather_objects, world_size
from evle.engine.devices import join_processes
from evle.engine.experts import DividedExperts, as_part
from evle.engine.failures import Interrupted
from evle.models.eve import EVEModel
from evle.models.eve.configuration import EVEConfig
from evle.models.eve.pretraining import EVEForPreTraining
from evle.models.eve.routing import SoftRouter
from toy_training import contrastive_batch, make_loader, shard_parameters, stop_at, train

WIDTH = 24


def layer(capacity_factor: float | None) -> tuple[Any, SoftRouter]:
    model = build(EVEModel, capacity_factor=capacity_factor, second_choice="top")
    return model, model.layers[2].feed_forward


def tokens_of(process: int) -> Tensor:
    """Tokens (1, S, D) of a process: another number in each, alike in process 1, which all choose the same experts."""
    generator = torch.Generator().manual_seed(process)
    rows = torch.randn(1, 9 + 2 * process, WIDTH, generator=generator)
    return rows[:, :1] + 0.01 * rows if process == 1 else rows


def weighed(output: Tensor) -> Tensor:
    """A loss in which every number of the output has its own weight."""
    return (output * torch.arange(output.numel()).view_as(output).sin()).sum()


def check_layer(process: int, num_parts: int) -> None:
    for capacity_factor in (None, 0.5):
        check_divided(process, num_parts, capacity_factor)


def check_divided(process: int, num_parts: int, capacity_factor: float | None) -> None:
    """One soft-routed block with divided experts, against one that holds all and sees the tokens of each in turn."""
    _, whole = layer(capacity_factor)
    inputs = [tokens_of(each).requires_grad_() for each in range(world_size())]
    outputs = [whole(each, 4, None)[0] for each in inputs]
    (torch.stack([weighed(each) for each in outputs]).mean()).backward()

    model, divided = layer(capacity_factor)
    experts = DividedExperts(model, num_parts, "cpu")
    assert divided.experts.up_proj.shape == (4 // num_parts, 40, WIDTH)
    own = tokens_of(process).requires_grad_()
    output, _ = divided(own, 4, None)
    torch.testing.assert_close(output, outputs[process], atol=1e-6, rtol=1e-6)
    weighed(output).backward()
    torch.testing.assert_close(own.grad, inputs[process].grad * world_size(), atol=1e-6, rtol=1e-6)
    experts.average_gradients()
    for name, parameter in divided.experts.named_parameters():
        gradient: Any = as_part(parameter.grad, parameter)
        expected = whole.experts.get_parameter(name).grad
        torch.testing.assert_close(gradient.full_tensor(), expected, atol=1e-6, rtol=1e-6)
    check_joining(experts, whole, divided)


def check_joining(experts: DividedExperts, whole: SoftRouter, divided: SoftRouter) -> None:
    """Joined experts are whole, need no other process, and are parts again afterwards."""
    before = {name: parameter.detach().clone() for name, parameter in divided.experts.named_parameters()}
    with experts.joined(), torch.no_grad():
        for name, parameter in whole.experts.named_parameters():
            assert torch.equal(divided.experts.get_parameter(name), parameter)
        if dist.get_rank() == 0:
            divided(tokens_of(0), 4, None)
    assert all(torch.equal(before[name], parameter) for name, parameter in divided.experts.named_parameters())


def image_batch(rows: list[Tensor]) -> dict[str, Tensor]:
    """`contrastive_batch` with one of the four patches masked, another one in each row."""
    inputs = contrastive_batch(rows)
    chosen = inputs.pop("match_ids") % 4
    return {**inputs, "image_mask": torch.nn.functional.one_hot(chosen, 4).bool()}


def make_model() -> Any:
    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "soft_layers": (0, 1)}
    sizes = {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "vocab_size": 10, "num_experts": 4}
    still = {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0, "second_choice": "top", "layer_scale_init": 1.0}
    decoder = {"decoder_hidden_size": 16, "decoder_num_layers": 1, "decoder_num_heads": 2}
    # Losses that are means over rows, whatever process has them: no balance over a process's tokens.
    losses = {"objectives": ("mim",), "router_aux_loss_coef": 0.0, "initializer_range": 0.1}
    return EVEForPreTraining(EVEConfig(**{**small, **sizes, **still, **decoder, **losses}))


def score(model: Any) -> float:
    """A number that depends on all experts, computed without any other process."""
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(4, 3, 16, 16, generator=generator)
    with torch.no_grad():
        outputs = model.eve(pixel_values=images, input_ids=torch.tensor([[2, 3, 4]] * 4))
    return float(outputs.image_hidden.square().sum())


def continue_training(process: int, folder: str, num_processes: int, num_parts: int, options: dict[str, Any]) -> None:
    """Train the run in `folder` on eight rows a step, by `engine`; with `stop`, the first process interrupts it at that
    batch."""
    join_processes()
    stop, engine = options.pop("stop", None), options.pop("engine", "ddp")
    if engine == "fsdp2":
        shard_parameters()
        os.environ.update(FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP")
    loader = make_loader(8 // num_processes, num_samples=24, rank=process, world_size=num_processes)
    loader._maker.collate = image_batch
    if stop is not None and process == 0:
        loader = stop_at(loader, stop)
    calls = 1 + process  # processes may call the model as often as they want

    def evaluate(model: Any) -> dict[str, float]:
        return {"score": [score(model) for _ in range(calls)][-1]}

    settings = {"ema": 0.9, "save_every": 2, "eval_every": 3, "keep": "last", "optim": {"clip": 0.01}, **options}
    model = make_model()
    with suppress(Interrupted):
        train(
            model,
            Path(folder),
            batch_size=8,
            loader=loader,
            evaluate=evaluate,
            steps=9,
            expert_parallel=num_parts,
            **settings,
        )
        assert stop is None
        scores = gather_objects([score(model)])  # a whole model in every process, which needs no other one
        assert max(scores) - min(scores) < 1e-5
