"""Which of a model's weights are trained.

`model.freeze` freezes parts of it. `model.lora` trains low-rank adapters in place of the backbone; they are saved with
the name of the model that they adapt, and can be merged with it.
"""

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from evle.config import Config, refuse_no_pattern
from evle.engine.run_folder import make_output
from evle.errors import ConfigError, nearest
from evle.models import eve, vle
from evle.models.adapters import FOLDER, has_adapter, write_adapter
from evle.models.folders import from_folder, model_folder, read_fields, read_tensors
from evle.models.loading import without_bars


class LoraConfig(Config):
    """Low-rank adapters (LoRA, Hu et al. 2021) of the backbone's linear layers; needs `evle[lora]`.

    Besides them only heads, and tensors that `model.init` lacks or that were resized, are trained.
    """

    rank: int = Field(default=8, ge=1)
    """Rank of each update."""
    alpha: float = Field(default=16.0, gt=0)
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = (".",)
    """Patterns (re.search on a module's name) of the backbone's linear layers to adapt; by default all of them. EVE's
    experts are stacked tensors and no linear layers: they keep their weights."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before each update."""
    dora: bool = False
    """Train the length of each weight's rows apart from their direction (DoRA, Liu et al. 2024)."""

    @field_validator("targets")
    @classmethod
    def _check(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in targets:
            refuse_no_pattern(pattern)
        return targets


@dataclass(frozen=True)
class Adapter:
    """What is written of a model with adapters: `settings` as peft has them, and the folder or hub name of the base."""

    base: str
    settings: Mapping[str, Any]
    note: str
    """What a person should know, in one line."""

    def write(self, model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write a model folder that holds the adapter in place of weights."""
        config: Any = model.config
        config.architectures = [type(model).__name__]
        config.dtype = str(model.dtype).removeprefix("torch.")
        config.save_pretrained(folder)
        write_adapter(folder, weights, self.settings, self.base, read_tensors(model_folder(self.base)))


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Stop the training of the parameters whose names match one of `patterns` (re.search); their names.

    A batch norm whose parameters are frozen also keeps its statistics and normalises by them, as in evaluation. Raises
    ConfigError for a pattern that matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if re.search(pattern, name)}
        if not matching:
            parts = {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)}
            raise ConfigError(f"model.freeze: {pattern!r} matches no parameter; {nearest(pattern, parts)}")
        frozen |= matching
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(each.requires_grad for each in module.parameters()):
            module.register_forward_pre_hook(_stay_in_evaluation)
    return sorted(frozen)


def _stay_in_evaluation(module: nn.Module, inputs: object) -> None:
    """Put one module, which is about to run, back into evaluation mode after `train()` of the whole model."""
    module.eval()


def adapt(model: PreTrainedModel, options: LoraConfig, init: str, untrained: Collection[str]) -> Adapter:
    """Put adapters into the linear layers of the backbone, in place, and train these, the heads and the parameters of
    `untrained`, which `init` lacks, alone. Parameters that are frozen already stay so, without an adapter.

    Raises ConfigError without peft, and where no layer is adapted.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("model.lora needs peft; install it with: pip install 'evle[lora]'") from None
    backbone = f"{model.base_model_prefix}."
    parameters = dict(model.named_parameters())
    whole = {name for name in parameters if not name.startswith(backbone) or name in untrained}
    whole = {name for name in whole if parameters[name].requires_grad}
    layers = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.startswith(backbone) and f"{name}.weight" not in whole
        if module.weight.requires_grad
    ]
    targets = []
    for pattern in options.targets:
        matching = [name for name in layers if re.search(pattern, name)]
        if not matching:
            kinds = {name.split(".")[-1] for name in layers}
            raise ConfigError(
                f"model.lora.targets: {pattern!r} matches no linear layer with trained weights; "
                f"{nearest(pattern, kinds)}"
            )
        targets += matching
    settings = peft.LoraConfig(
        r=options.rank,
        lora_alpha=cast(int, options.alpha),
        lora_dropout=options.dropout,
        use_dora=options.dora,
        target_modules=sorted(set(targets)),
    )
    peft.inject_adapter_in_model(settings, model)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in whole)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    total = sum(each.numel() for each in model.parameters())
    note = (
        f"adapters of rank {options.rank} in {len(set(targets))} layers: "
        f"{trained / 1e6:.2f} of {total / 1e6:.2f} M parameters are trained"
    )
    plain = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in {**cast(Any, settings).to_dict(), "inference_mode": True}.items()
    }
    return Adapter(str(model_folder(init)) if Path(init).exists() else init, plain, note)


def merge_adapter(source: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """Write the model of a run or model folder with its adapter merged into the weights, so that it needs neither its
    base nor peft; the model folder that was written.

    Of a run, `output` gets config.yaml too, by which pipelines and evaluations read texts as the run did. Raises
    CheckpointError for an adapter that does not fit its base, ConfigError for a model without one.
    """
    folder, output = model_folder(source), Path(output)
    if not has_adapter(folder):
        raise ConfigError(f"{source}: has no adapter to merge; its weights are whole already")
    is_run = folder.name == "model" and (folder.parent / "config.yaml").is_file()
    target = output / "model" if is_run else output
    if (target / "config.json").exists() and not overwrite:
        raise ConfigError(f"{output} holds a model already; choose another output, or replace it with --overwrite")
    fields = read_fields(folder, ("eve", "vle"))
    family: Any = {"eve": eve, "vle": vle}[fields["model_type"]]
    with without_bars():
        model = from_folder(getattr(family, fields["architectures"][0]), folder)
        make_output(target)
        shutil.copytree(folder, target, ignore=lambda *_: [FOLDER], dirs_exist_ok=True)
        model.save_pretrained(target)
    if is_run:
        shutil.copy(folder.parent / "config.yaml", output)
    return target
