"""Candidates of a search by embeddings, ordered again by the match logits of joint passes (ALBEF's protocol).

Q queries, K candidates of each, k of which have a match logit.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evle.metrics import NOT_FOUND, list_ranks, retrieval_scores
from evle.report import Table

WEIGHTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Weights of the similarity that the report compares."""


class Candidates(NamedTuple):
    """The candidates of one direction of search, best first by embeddings."""

    indices: np.ndarray
    """Items, (Q, K)."""
    similarities: np.ndarray
    """Their cosine similarities to the query, (Q, K)."""
    logits: np.ndarray
    """The match logits of the first k of them, (Q, k)."""
    embedding_ranks: Tensor
    """By embeddings, the rank of the best right item of each query among all items, (Q,)."""
    query_ids: Tensor
    """(Q,)"""
    item_ids: Tensor
    """The ids of all items; an item is right when its id is that of the query."""

    def order(self, similarity_weight: float) -> np.ndarray:
        """The candidates (Q, K), the first k in falling order of the match logit plus weight times similarity."""
        k = self.logits.shape[1]
        scores = self.logits + similarity_weight * self.similarities[:, :k]
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.concatenate([np.take_along_axis(self.indices[:, :k], order, axis=1), self.indices[:, k:]], axis=1)

    def ranks(self, order: np.ndarray) -> Tensor:
        """The rank of the best right item of each query, (Q,): in `order`, and where that has none, by embeddings,
        which is behind all candidates."""
        ranks = list_ranks(self.item_ids[torch.from_numpy(order)], self.query_ids)
        return torch.where(ranks == NOT_FOUND, self.embedding_ranks, ranks)


def weights_table(to_text: Candidates, to_image: Candidates, by_embeddings: dict[str, float]) -> Table:
    """R@1 in both directions by the weight of the similarity."""
    rows: list[list[object]] = [["embeddings alone", by_embeddings["TR@1"], by_embeddings["IR@1"]]]
    for weight in WEIGHTS:
        text_ranks, image_ranks = to_text.ranks(to_text.order(weight)), to_image.ranks(to_image.order(weight))
        scores = retrieval_scores(text_ranks, image_ranks, (1,))
        rows.append([f"{weight:g}", scores["TR@1"], scores["IR@1"]])
    return Table(
        "Re-ranking by the weight of the similarity",
        ["task.similarity_weight", "TR@1", "IR@1"],
        rows,
        "Choose the weight on validation data, not on the data that it is reported for.",
    )
