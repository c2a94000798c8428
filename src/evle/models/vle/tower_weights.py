"""Read the trained encoders from which a new VLE starts: any image and any text encoder of transformers."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from evle.errors import CheckpointError, ConfigError, in_one_line
from evle.models.adapters import refuse_peft_adapter
from evle.models.folders import from_folder, local_folder, refuse_file
from evle.models.soundness import refuse_odd_weights
from evle.models.vle.towers import refuse_no_encoder
from evle.models.vle.vision import POOLERS

Kind = Literal["vision_config", "text_config"]
WANTED = {"vision_config": "an image encoder", "text_config": "a text encoder"}


def read_tower_config(path: str | Path, kind: Kind) -> PreTrainedConfig:
    """The configuration of the encoder in a folder or hub repository; for a model of both modalities, that of the
    half in question.

    Raises CheckpointError if there is none.
    """
    folder = local_folder(path)
    if not folder.exists():  # transformers would take the name for one of the hub, and try to reach it for minutes
        raise CheckpointError(
            f"{path}: holds no model (no such folder); give {WANTED[kind]}, or its hub name OWNER/NAME"
        )
    refuse_file(folder)
    try:
        fields = PreTrainedConfig.get_config_dict(folder)[0]
        if fields.get("model_type") == "vle":
            raise CheckpointError(f"{path}: is a whole VLE; name it as the model to start from (model.init)")
        if "auto_map" in fields and "model_type" not in fields:
            raise CheckpointError(f"{path}: needs its own code, which is never run; give a model of transformers")
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config = getattr(config, kind, None) or config
        refuse_no_encoder(kind, config)
    except CheckpointError:
        raise
    except ConfigError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{kind} ')}") from None
    except Exception as error:  # a config.json may hold anything, and transformers raises what that leads to
        raise CheckpointError(f"{path}: holds no model ({in_one_line(error)}); give {WANTED[kind]}") from None
    return config


def read_tower(path: str | Path, kind: Kind, num_layers: int | None = None) -> PreTrainedModel:
    """The encoder in a folder or hub repository, in float32, with its first `num_layers` layers, all by default.

    Raises:
        CheckpointError: there is no such model, some of its weights are missing, quantised or not finite, or an adapter
            is beside them.
        ConfigError: the model has fewer layers.
    """
    config = read_tower_config(path, kind)
    model_class: Any = MODEL_MAPPING[type(config)]
    refuse_peft_adapter(local_folder(path))
    try:
        loaded = from_folder(model_class, local_folder(path), dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        raise CheckpointError(f"{path}: holds no model ({in_one_line(error)}); give {WANTED[kind]}") from None
    except Exception as error:  # from_pretrained raises a dozen kinds of errors for damaged files
        raise CheckpointError(f"{path}: cannot be read ({in_one_line(error)}); fetch it again") from error
    model, info = loaded
    missing = sorted(name for name in info["missing_keys"] if name.split(".")[0] not in POOLERS)
    if missing:
        raise CheckpointError(
            f"{path}: lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}; give "
            f"{WANTED[kind]} with all of its weights"
        )
    refuse_odd_weights(local_folder(path), model)
    return model if num_layers is None else _first_layers(model, num_layers, path)


def _first_layers(model: PreTrainedModel, num_layers: int, path: str | Path) -> PreTrainedModel:
    config: Any = copy.deepcopy(model.config)
    has = getattr(config, "num_hidden_layers", None)
    if has is None or hasattr(config, "depths"):
        raise ConfigError(
            f"vision_layers={num_layers}: {path} is a {config.model_type}, which has stages; leave the option out"
        )
    if not 1 <= num_layers <= has:
        raise ConfigError(f"vision_layers={num_layers}: the tower in {path} has {has} layers")
    config.num_hidden_layers = num_layers
    first = type(model)(config)
    state = model.state_dict()
    first.load_state_dict({name: state[name] for name in first.state_dict()})
    return first.eval()


def refuse_unfit(tower: PreTrainedModel, fields: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError for `fields` of a configuration that would change the weights of the trained `tower`.

    `where` is put before their names.
    """
    has = _shapes(tower.state_dict())
    unfit = []
    for name, value in fields.items():
        try:
            with torch.device("meta"):
                changed = type(tower)(type(tower.config)(**{**tower.config.to_dict(), name: value}))
            fits = _shapes(changed.state_dict()) == has
        except (ValueError, StrictDataclassError):  # it does not even go with the tower's other fields
            fits = False
        if not fits:
            unfit.append(f"{where}{name}={value!r} (they have {getattr(tower.config, name)!r})")
    if unfit:
        raise ConfigError(
            f"the trained weights of {type(tower).__name__} do not fit {', '.join(unfit)}; leave these fields out, or "
            "build a model with random weights from a VLEConfig"
        )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
