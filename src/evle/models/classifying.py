"""What the heads that classify share in both families: the released classifier, labels of answers, pairs of images.

B batch, A answers.
"""

import torch
from torch import Tensor, nn

from evle import objectives
from evle.errors import DataError


def two_layer_classifier(in_features: int, num_classes: int, *, inner: int | None = None) -> nn.Sequential:
    """The classifier of both released codes: Linear, LayerNorm, GELU, Linear; by default `inner` is `in_features`."""
    inner = in_features if inner is None else inner
    return nn.Sequential(nn.Linear(in_features, inner), nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, num_classes))


def answer_scores(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels of VQA as soft scores (B, A) for `logits`: scores are unchanged, an index (B,) becomes a score of 1.

    Raises DataError for another shape and, if the check needs no synchronisation, for an index out of range.
    """
    if labels.shape == logits.shape:
        return labels
    num_answers = logits.shape[1]
    if labels.dim() != 1 or len(labels) != len(logits) or labels.is_floating_point():
        raise DataError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}; "
            "give one soft score for each answer of config.id2label, or one answer's index per row"
        )
    if objectives.is_eager_cpu(labels.device) and bool(((labels < 0) | (labels >= num_answers)).any()):
        raise DataError(f"labels {labels.tolist()} must be answers' indices, 0 to {num_answers - 1}")
    return torch.zeros_like(logits).scatter(1, labels[:, None].long(), 1.0)


def check_two_images(pixel_values: Tensor) -> None:
    """Raise DataError unless `pixel_values` are (B, 2, C, H, W)."""
    if pixel_values.dim() != 5 or pixel_values.shape[1] != 2:
        raise DataError(
            f"NLVR2 takes pixel_values (B, 2, C, H, W), two images per statement; got {tuple(pixel_values.shape)}"
        )
