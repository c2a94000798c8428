"""A model, a task and a data set of the smallest size, for the engine's tests; importable by spawned processes."""

import itertools
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.state import DistributedType, PartialState
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from evle.data.loader import Loader
from evle.engine.devices import join_processes
from evle.engine.failures import Interrupted
from evle.engine.optim import OptimConfig
from evle.engine.run_folder import Run
from evle.engine.steps import FitResult
from evle.engine.train_config import TrainConfig
from evle.engine.trainer import fit
from evle.models.eve.configuration import EVEConfig
from evle.models.eve.pretraining import EVEForPreTraining

WIDTH = 4


class ToyConfig(PreTrainedConfig):
    model_type = "evle-toy"
    dropout: float = 0.0


@dataclass
class ToyOutput(ModelOutput):
    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None


class ToyModel(PreTrainedModel):
    """Two layers; the losses are means over rows."""

    config_class = ToyConfig

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.inner = nn.Linear(WIDTH, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(8, WIDTH)
        self.unused = nn.Parameter(torch.zeros(2, 2))
        self.register_buffer("seen", torch.zeros(()))
        self.post_init()

    def get_input_embeddings(self) -> None:
        """None: accelerate asks when it shards."""

    def forward(self, x: Tensor, labels: Tensor) -> ToyOutput:
        """x, labels (B, WIDTH)."""
        self.seen += 1
        hidden = self.dropout(torch.tanh(self.norm(self.inner(x))))
        error = self.head(hidden).float() - labels
        losses = {"square": error.square().mean(), "absolute": 0.1 * error.abs().mean()}
        return ToyOutput(loss=losses["square"] + losses["absolute"], losses=losses)


class ToyTokenizer:
    def __len__(self) -> int:
        return 1

    def convert_ids_to_tokens(self, numbers: list[int]) -> list[str]:
        return ["toy"] * len(numbers)


class ToyProcessor:
    tokenizer = ToyTokenizer()

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "processor.txt").write_text("toy")


def moved(batch, device):
    return {name: tensor.to(device) for name, tensor in batch.items()}


TASK: Any = SimpleNamespace(processor=ToyProcessor(), metric="score", higher_is_better=True, on_device=moved)


@dataclass(frozen=True)
class Row:
    key: str
    number: int


def features(row: Row, rng: Any) -> Tensor:
    x = torch.randn(WIDTH, generator=torch.Generator().manual_seed(row.number))
    return torch.stack([x, x.flip(0) + 0.1 * float(rng.random())])


def collate(rows: list[Tensor]) -> dict[str, Tensor]:
    x, labels = torch.stack(rows).unbind(1)
    return {"x": x.clone(), "labels": labels.clone()}


def make_model(dropout: float = 0.0, seed: int = 0) -> ToyModel:
    torch.manual_seed(seed)
    return ToyModel(ToyConfig(dropout=dropout))


def make_loader(batch_size: int, num_samples: int = 20, **options: Any) -> Loader:
    rows: Any = [Row(f"row{number}", number) for number in range(num_samples)]
    return Loader(rows, features, collate, batch_size=batch_size, seed=3, **options)


def train(
    model: ToyModel,
    folder: Path,
    *,
    batch_size: int = 4,
    num_samples: int = 20,
    lr: float = 0.01,
    loader: Any = None,
    evaluate: Any = None,
    optim: dict[str, Any] | None = None,
    **options: Any,
) -> FitResult:
    """`fit` on the toy, in `folder`."""
    settings = TrainConfig(batch_size=batch_size, **{"log_every": 1, "save_every": 0, "eval_every": 0, **options})
    run = Run.start(folder, {"train": settings.model_dump(mode="json")}, seed=0)
    return fit(
        model,
        TASK,
        loader or make_loader(batch_size // settings.accumulation, num_samples),
        train=settings,
        optim=OptimConfig(lr=lr, **(optim or {})),
        run=run,
        seed=5,
        evaluate=evaluate,
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def stop_at(loader: Any, batch_number: int) -> Any:
    """The loader, which sends its process SIGTERM while it makes the batch of this number, counted over all epochs."""
    maker, calls = loader._maker, itertools.count()
    inner = maker.features

    def features_and_stop(row: Row, rng: Any) -> Tensor:
        if next(calls) == batch_number * maker.batch_size:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(row, rng)

    maker.features = features_and_stop
    return loader


def train_in_two_processes(process: int, folder: str, total: int, options: dict[str, Any]) -> None:
    """One of two processes that train on `total` rows a step, in `folder`; one is asked to stop, and both resume."""
    join_processes()
    settings = {"accumulation": 1, "num_samples": 20, **options}
    rows, num_samples = total // 2 // settings["accumulation"], settings["num_samples"]
    loader = make_loader(rows, num_samples, rank=process, world_size=2)
    stopping = stop_at(loader, 4) if process == 1 else loader
    try:
        train(make_model(), Path(folder), batch_size=total, loader=stopping, **settings)
        raise AssertionError("SIGTERM did not stop the run")
    except Interrupted:
        loader = make_loader(rows, num_samples, rank=process, world_size=2)
        model = make_model(seed=9)
        train(model, Path(folder), batch_size=total, loader=loader, **settings)
        assert not isinstance(model.inner(torch.ones(1, WIDTH)), DTensor)  # usable on its own afterwards


def shard_parameters() -> None:
    """Let accelerate shard by FSDP2 in this process.

    It shards on accelerators only; told that these two processes have them, it runs the very same code.
    """
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="SIZE_BASED_WRAP")
    os.environ.update(FSDP_MIN_NUM_PARAMS="20", FSDP_RESHARD_AFTER_FORWARD="true")
    join_processes()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def train_sharded(process: int, folder: str, total: int, options: dict[str, Any]) -> None:
    """As `train_in_two_processes`, with parameters sharded by FSDP2, and validation."""
    shard_parameters()
    seen = []

    def evaluate(model: ToyModel) -> dict[str, float]:
        # Processes may call what they want how often they want, also what is not `forward`.
        for _ in range(1 + process):
            score = float(model.head(torch.tanh(model.inner(torch.ones(1, WIDTH)))).sum())
        seen.append(type(model.inner.weight))
        return {"score": score}

    train_in_two_processes(process, folder, total, {**options, "evaluate": evaluate})
    assert seen
    assert not any(issubclass(kind, DTensor) for kind in seen)


def contrastive_batch(rows: list[Tensor]) -> dict[str, Tensor]:
    """Images (B, 3, 16, 16) and texts (B, 4) drawn from the rows' own numbers."""
    seeds = [int(row[0, 0].mul(1e6).abs()) for row in rows]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return {
        "pixel_values": torch.stack([torch.rand(3, 16, 16, generator=each) for each in generators]),
        "input_ids": torch.stack([torch.randint(2, 10, (4,), generator=each) for each in generators]),
        "attention_mask": torch.ones(len(rows), 4, dtype=torch.long),
        "match_ids": torch.tensor(seeds),
    }


def train_contrastive(
    process: int, folder: str, num_processes: int, sharded: bool = False, accumulation: int = 1
) -> None:
    """Two steps of EVE with ITC alone on 8 rows a step, by one process or two; the best weights are kept."""
    join_processes()
    if sharded:
        shard_parameters()
        os.environ.update(FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP")
    rows = 8 // num_processes // accumulation
    loader = make_loader(rows, num_samples=16, rank=process, world_size=num_processes)
    loader._maker.collate = contrastive_batch
    torch.manual_seed(0)
    small: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "soft_layers": (1,)}
    sizes: dict[str, Any] = {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "vocab_size": 10}
    still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0, "second_choice": "top"}
    model: Any = EVEForPreTraining(EVEConfig(**small, **sizes, **still, num_experts=4, objectives=("itc",)))
    options: dict[str, Any] = {"steps": 2, "lr": 1e-3, "evaluate": lambda model: {"score": 1.0}}
    options["accumulation"] = accumulation
    train(model, Path(folder), batch_size=8, loader=loader, **options)
    assert model.contrast.temperature.shape == ()
