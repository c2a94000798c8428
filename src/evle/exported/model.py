"""An exported model in the place of a torch model: the same calls, computed by onnxruntime, without gradients.

With it every pipeline and every evaluation takes an exported folder.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evle.errors import ConfigError
from evle.exported.folder import ExportedModel, head_for, is_exported
from evle.models.folders import from_folder
from evle.models.loading import ALL_PROCESSORS, load_model


def open_model(
    path: str | Path, models: Mapping[str, type[PreTrainedModel]], device: str | torch.device | None = None
) -> tuple[Any, Any]:
    """The model and the processor in `path`, as `load_model`; for an exported folder, its graphs as a `GraphModel`."""
    if not is_exported(path):
        return load_model(path, models, device)
    model = GraphModel(path, models)
    return model, from_folder(ALL_PROCESSORS[model.config.model_type], path)


class GraphModel:
    """The graphs of an exported folder with the methods of the model that they were made of.

    Raises CheckpointError where the folder was exported from another head than that of `models`.
    """

    dtype = torch.float32
    device = torch.device("cpu")
    training = False

    def __init__(self, path: str | Path, models: Mapping[str, type[PreTrainedModel]]):
        self.graphs = ExportedModel(path, torch.get_num_threads())
        head_for(self.graphs.path, {family: each.__name__ for family, each in models.items()}, self.graphs.facts)
        model_class: Any = models[self.graphs.facts["family"]]
        self.config: Any = from_folder(model_class.config_class, path)
        self.fingerprint = str(self.graphs.fact("fingerprint", str))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self._run("image", pixel_values=pixel_values)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self._run("text", input_ids=input_ids, attention_mask=attention_mask)

    def itm_logits(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_rows: Tensor | None = None,
        text_rows: Tensor | None = None,
    ) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pixel_values = pixel_values if image_rows is None else pixel_values[image_rows]
        rows = slice(None) if text_rows is None else text_rows
        return self._run("match", pixel_values=pixel_values, input_ids=input_ids[rows], attention_mask=mask[rows])

    def __call__(self, **inputs: Tensor) -> SimpleNamespace:
        """The logits of the one graph of a model with a single head."""
        if inputs.get("output_attentions"):
            raise ConfigError(f"{self.graphs.path}: graphs give no attention maps; explain the model that was exported")
        inputs.pop("labels", None)
        function = next(name for name in self.graphs.facts["runs"] if name not in ("image", "text", "states"))
        if len(self.graphs.facts["runs"]) > 1 and "locate" in self.graphs:
            function = "locate"
        return SimpleNamespace(logits=self._run(function, **inputs), loss=None)

    def similarity_scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return float(self.graphs.fact("scale", float))

    def _run(self, function: str, **inputs: Tensor | None) -> Tensor:
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        if "input_ids" in given and "attention_mask" not in given:
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in given.items()}
        return torch.from_numpy(self.graphs.run(function, arrays))

    # What evaluation asks of a torch model: a graph has one mode and one device.

    def to(self, *_: Any, **__: Any) -> Self:
        return self

    def eval(self) -> Self:
        return self

    def train(self, mode: bool = True) -> Self:
        return self

    def modules(self) -> Iterator[Any]:
        return iter(())
