"""Contrast with embeddings of past steps: a small batch meets as many negatives as a large one (Wang et al. 2020,
"Cross-Batch Memory for Embedding Learning", https://arxiv.org/abs/1912.06798)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from evle.errors import CheckpointError, ConfigError
from evle.models.contrast import ContrastHead, Embedded, PastContrast, default_match_ids
from evle.tasks.task import Batch


class ContrastMemory:
    """The past embeddings of each head of a model that compares pairs; `size` is the number of pairs that it keeps.

    Every process keeps those of all processes. Raises ConfigError for a model without such a head.
    """

    def __init__(self, model: nn.Module, size: int):
        self.heads = [each for each in model.modules() if isinstance(each, ContrastHead)]
        if not self.heads:
            raise ConfigError(
                f"train.contrast_memory={size}: {type(model).__name__} has no contrast; set it to 0, or add the "
                "objective itc"
            )
        self.pasts = [PastContrast(size) for _ in self.heads]

    def with_ids(self, batch: Batch, step: int) -> Batch:
        """The batch of optimizer step `step` with match ids: by default, each pair of any step matches itself alone."""
        if "match_ids" in batch:
            return batch
        texts = batch["input_ids"]
        return {**batch, "match_ids": default_match_ids(len(texts), texts.device) + (step << 36)}

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """Inside, a pass is compared with the past ones too, and kept."""
        for head, past in zip(self.heads, self.pasts, strict=True):
            head.past = past
        try:
            yield
        finally:
            for head in self.heads:
                head.past = None

    def state(self) -> dict[str, Tensor]:
        """The embeddings by name, for a checkpoint."""
        return {
            f"{index}.{name}": rows.cpu().clone()
            for index, past in enumerate(self.pasts)
            if past.rows is not None
            for name, rows in past.rows._asdict().items()
        }

    def load(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take the embeddings that `state` gave. Raises CheckpointError if they are of another model."""
        expected = {f"{index}.{name}" for index in range(len(self.pasts)) for name in Embedded._fields}
        if state.keys() != expected:
            raise CheckpointError(f"{where}: embeddings of another model; start a new run")
        for index, (head, past) in enumerate(zip(self.heads, self.pasts, strict=True)):
            device = head.temperature.device
            past.rows = Embedded(*(state[f"{index}.{name}"].to(device) for name in Embedded._fields))
