"""The nearest rows of an index: exact in one pass over its memory-mapped vectors, or from an approximate index.

Both end in the same exact scores, in float32 and row by row, so that equal vectors have equal scores and stand in the
order of the index.

Legend: Q queries, N rows of the index, D dimension, k hits a query.
"""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from evle.errors import ConfigError
from evle.files import read_json, write_whole
from evle.search.store import Store, writing

logger = logging.getLogger(__name__)

APPROXIMATE_FROM = 1_000_000
"""Rows from which `evle index` also builds an approximate index, where faiss is installed."""

CANDIDATES = 4000
"""Rows that the approximate index proposes for each query, of which the exact scores are computed."""

HALF_ERROR = 1.0e-3
"""Largest error of a dot product of two unit vectors in float16: the query and the result are each rounded (2^-11)."""

TRAINING_ROWS = 32768
MEASURED_QUERIES = 50
FILES = ("approximate.faiss", "approximate.json")

Mask = Callable[[pa.Table], np.ndarray]


def nearest_rows(store: Store, queries: np.ndarray, k: int, mask: Mask | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q, k) float32 and rows (Q, k) int64 of the largest dot products with `queries` (Q, D), exact.

    `mask` says which rows of a shard count. Equal scores stand in the order of the index. Memory beyond the mapped
    files is of the order of one shard's scores.
    """
    queries = np.asarray(queries, np.float32)
    best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
    for number, start in enumerate(store.starts[:-1]):
        features, table = store.read(number)
        allowed = None if mask is None else np.flatnonzero(mask(table))
        if allowed is not None and not len(allowed):
            continue
        for index, query in enumerate(queries):
            scores, rows = _in_shard(features, query, k, best[index][0], allowed)
            best[index] = _merged(best[index], (scores, rows + start), k)
    return np.stack([scores for scores, _ in best]), np.stack([rows for _, rows in best])


def _in_shard(
    features: np.ndarray, query: np.ndarray, k: int, best: np.ndarray, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Exact scores and rows of all that may be among the k best: a fast pass finds them, a second one scores them."""
    if allowed is not None:
        features = features[allowed]
    rough = _rough_scores(features, query)
    error = HALF_ERROR if features.dtype == np.float16 else 1e-5
    least = np.partition(rough, -min(k, len(rough)))[-min(k, len(rough))] - 2 * error
    if len(best) >= k:
        least = max(least, best[k - 1] - error)
    rows = np.flatnonzero(rough >= least)
    scores = exact_scores(features[rows], query)
    return scores, rows if allowed is None else allowed[rows]


def _rough_scores(features: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Dot products (N,) float32 up to rounding. numpy has no products in float16: torch computes them, several times
    as fast, where the model has imported it; a search with an exported model does without."""
    torch = sys.modules.get("torch")
    if features.dtype == np.float16 and torch is not None:
        product = torch.from_numpy(features) @ torch.from_numpy(query.astype(np.float16))
        return np.asarray(product.float())
    return np.asarray(features.astype(np.float32, copy=False) @ query)


def exact_scores(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Dot products (N,) float32. Unlike a matrix product, each depends on its own row alone to the last bit."""
    return np.asarray((vectors.astype(np.float32) * query).sum(axis=1))


def _merged(
    best: tuple[np.ndarray, np.ndarray], more: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of both; their rows ascend, so that a stable order keeps equal scores in the order of the index."""
    scores, rows = np.concatenate([best[0], more[0]]), np.concatenate([best[1], more[1]])
    chosen = np.argsort(-scores, kind="stable")[:k]
    return scores[chosen], rows[chosen]


class Approximate:
    """A small copy of all vectors (4 bits for two numbers, product quantisation) that faiss scans quickly."""

    def __init__(self, index: Any, store: Store, recall: float):
        self.index = index
        self.names = [shard.name for shard in store.shards]
        self.recall = recall

    @classmethod
    def build(cls, store: Store) -> "Approximate":
        """Build it for the rows of `store`, write it beside them, and measure its recall against exact search.

        The queries measured are rows of the index with noise. Raises ConfigError without faiss.
        """
        faiss = _faiss()
        rng = np.random.default_rng(0)
        dimension = store.facts.dimension
        index = faiss.IndexPQFastScan(dimension, max(1, dimension // 2), 4, faiss.METRIC_INNER_PRODUCT)
        sample = np.sort(rng.choice(len(store), min(TRAINING_ROWS, len(store)), replace=False))
        index.train(store.vectors(sample).astype(np.float32))
        for number in range(len(store.shards)):
            index.add(store.read(number)[0].astype(np.float32))
        approximate = cls(index, store, 0.0)
        rows = sample[rng.permutation(len(sample))[:MEASURED_QUERIES]]
        noise = rng.normal(size=(len(rows), dimension)).astype(np.float32) * (0.3 / dimension**0.5)
        queries = store.vectors(rows).astype(np.float32) + noise
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        k = min(10, len(store))
        exact, proposed = nearest_rows(store, queries, k)[1], approximate.nearest_rows(store, queries, k)[1]
        hits = sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), proposed.tolist(), strict=True))
        approximate.recall = hits / max(1, exact.size)
        with writing(store.path):
            write_whole(store.path / FILES[0], faiss.serialize_index(index).tobytes())
            facts = {"shards": approximate.names, "recall": approximate.recall}
            write_whole(store.path / FILES[1], json.dumps(facts) + "\n")
        logger.info("approximate index: recall@%d %.1f %% on %d queries", k, 100 * approximate.recall, len(rows))
        return approximate

    @classmethod
    def load(cls, store: Store) -> "Approximate | None":
        """The approximate index of exactly these rows; None where there is none, or only one of an earlier state."""
        binary, facts_file = (store.path / name for name in FILES)
        if not (binary.is_file() and facts_file.is_file()):
            return None
        facts = read_json(facts_file, kind=dict)
        if facts.get("shards") != [shard.name for shard in store.shards]:
            return None
        try:
            faiss = _faiss()
        except ConfigError as error:
            logger.warning("%s; searching exactly", error)
            return None
        try:
            index = faiss.deserialize_index(np.frombuffer(binary.read_bytes(), dtype=np.uint8))
        except RuntimeError as error:
            logger.warning("%s: damaged (%s); searching exactly", binary, str(error).splitlines()[0])
            return None
        return cls(index, store, float(facts.get("recall", 0.0)))

    def nearest_rows(self, store: Store, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As the function of that name, over the rows that the approximate index proposes."""
        queries = np.asarray(queries, np.float32)
        _, proposed = self.index.search(queries, min(len(store), max(CANDIDATES, 4 * k)))
        all_scores, all_rows = [], []
        for query, line in zip(queries, proposed, strict=True):
            rows = np.sort(line[line >= 0])
            scores = exact_scores(store.vectors(rows), query)
            chosen = np.argsort(-scores, kind="stable")[:k]
            all_scores.append(scores[chosen])
            all_rows.append(rows[chosen])
        return np.stack(all_scores), np.stack(all_rows)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ConfigError("an approximate index needs the package faiss-cpu; pip install 'evle[index]'") from None
    return faiss
