"""The training objectives: pure functions of tensors, each returning one float32 scalar.

B batch, G batch gathered over all processes, T text tokens, P patches, M masked positions, E experts, V vocabulary,
A answers.
Whatever the precision of the inputs, softmax and losses are computed in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
"""The label of what does not count: a text token that was not masked, a patch of a text that names no region; also the
match id of a pair that contrast and matching leave out."""


def is_eager_cpu(device: torch.device) -> bool:
    """Whether looking at a tensor's values costs nothing: not on an accelerator, where it waits for the device, and not
    in a compiled or exported graph, which it breaks."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def balance(gates: Tensor, first_choice: Tensor, real: Tensor | None = None) -> Tensor:
    """Load-balancing loss of one soft-routed block, `E * sum_i f_i p_i`: 1 for an even load, E for a single expert.

    `gates` (T, E) are router probabilities and `first_choice` (T,) the index of the best expert, before any capacity
    cut: f is the share of tokens an expert wins, p its mean probability (EVE, section 3.2; GShard). Tokens whose `real`
    (T,) is False do not count. No tokens give 0.
    """
    gates = gates.float()
    num_tokens, num_experts = gates.shape
    if num_tokens == 0:
        return gates.sum()
    wins = gates.new_zeros(num_experts)
    if real is None:
        share = wins.scatter_add(0, first_choice, torch.ones_like(gates[:, 0])) / num_tokens
        return num_experts * (share * gates.mean(dim=0)).sum()
    counted = real.to(gates.dtype)
    num_real = counted.sum().clamp(min=1)
    share = wins.scatter_add(0, first_choice, counted) / num_real
    return num_experts * (share * (counted[:, None] * gates).sum(dim=0) / num_real).sum()


def mim(predicted: Tensor, target: Tensor) -> Tensor:
    """Masked image modelling: mean squared error over the pixels (B, M, pixels per patch) of masked patches."""
    return F.mse_loss(predicted.float(), target.float())


def mim_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Masked image modelling of features (B, M, width): one minus their cosine, averaged over masked patches (MVP, Wei
    et al. 2022; EVA, Fang et al. 2023)."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()


def normalize_pixels(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Each patch (..., pixels) to mean 0 and variance 1: MAE's target (He et al. 2022, section 3)."""
    patches = patches.float()
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()


def mlm(logits: Tensor, labels: Tensor) -> Tensor:
    """Masked language modelling: mean cross-entropy of `logits` (..., V) against `labels` (...) that are not -100.

    0, still with a gradient path, when nothing was masked, so that no process of a group misses its backward pass.
    """
    rows, labels = logits.flatten(0, -2), labels.flatten()
    if is_eager_cpu(logits.device):  # fewer rows cost less, and their number is known at once
        kept = labels != IGNORE
        rows, labels = rows[kept], labels[kept]
    total = F.cross_entropy(rows.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def match_targets(ids: Tensor, all_ids: Tensor) -> Tensor:
    """Soft contrastive targets (B, G): each row spread evenly over the columns with its id (captions of one image).

    A row of id -100 has no target: it is all 0.
    """
    equal = ((ids[:, None] == all_ids[None, :]) & (ids != IGNORE)[:, None]).float()
    return equal / equal.sum(dim=1, keepdim=True).clamp(min=1)


def itc(image_to_text: Tensor, text_to_image: Tensor, targets: Tensor) -> Tensor:
    """Image-text contrast: soft cross-entropy in both directions, averaged.

    `image_to_text` and `text_to_image` (B, G) are similarities divided by the temperature, `targets` (B, G) rows that
    sum to 1 or, where a row is left out, to 0 (`match_targets`). 0, still with a gradient path, when no row is left.
    """
    rows = targets.any(dim=1).sum().clamp(min=1)
    image_loss = F.cross_entropy(image_to_text.float(), targets, reduction="sum")
    text_loss = F.cross_entropy(text_to_image.float(), targets, reduction="sum")
    return (image_loss + text_loss) / (2 * rows)


@torch.no_grad()
def sample_hard_negatives(
    logits: Tensor, excluded: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """One negative per row, sampled from softmax(logits) + 1e-5 over the columns that are not `excluded` (ALBEF).

    `logits` and the boolean `excluded` are (B, G). Returns (index (B,), found (B,) bool); `found` is False where a
    row has no negative at all, and its index is then meaningless.
    """
    weights = torch.softmax(logits.float(), dim=1).nan_to_num() + 1e-5  # non-finite losses are reported by the trainer
    weights = weights.masked_fill(excluded, 0.0)
    found = ~excluded.all(dim=1)
    weights = torch.where(found[:, None], weights, torch.ones_like(weights))
    return torch.multinomial(weights, 1, generator=generator).squeeze(1), found


def itm(logits: Tensor, labels: Tensor) -> Tensor:
    """Image-text matching: cross-entropy of `logits` (B, 2), column 1 = match, against `labels` (B,) of 0 and 1.

    Labels of -100 are left out; 0, still with a gradient path, when none is left.
    """
    return mlm(logits, labels)


def choices(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of `logits` (B, classes) against the right class (B,): NLVR2, multiple choice. No rows give 0."""
    if len(labels) == 0:
        return logits.float().sum()
    return F.cross_entropy(logits.float(), labels)


def mpc(logits: Tensor, labels: Tensor) -> Tensor:
    """Masked patch-box classification: cross-entropy of `logits` (B, classes) of blacked-out objects against their
    classes (B,), those of label -100 left out; 0, still with a gradient path, when none is left (VLE's README)."""
    return mlm(logits, labels)


def pbc(logits: Tensor, labels: Tensor) -> Tensor:
    """Patch-box classification: mean cross-entropy of `logits` (B, P, 2), column 1 = belongs to the text, over the
    patches whose `labels` (B, P) are not -100; 0, still with a gradient path, when there is none (VLE's README)."""
    return mlm(logits, labels)


def answers(logits: Tensor, targets: Tensor) -> Tensor:
    """VQA: binary cross-entropy of `logits` (B, A) against soft scores in [0, 1], averaged over B and A, times A.

    The factor A keeps the scale of a sum over answers, as in the released code of EVE (and METER, ViLT).
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float()) * targets.shape[-1]
