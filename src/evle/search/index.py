"""Search images by words or by another image: an index of embeddings that can grow, shrink and be searched.

Re-ranking looks at the best images again, together with the text.

Legend: Q queries, N rows of the index, D dimension, k hits per query.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from evle.data.requests import as_images, as_texts
from evle.data.samples import ImageSource
from evle.errors import CheckpointError, ConfigError, DataError, SampleError, at_least, nearest
from evle.search import nearest as scanning
from evle.search.filters import Filter
from evle.search.listing import OtherTables, cure_of_moving, folder_of, hashed, is_gone, list_entries, path_inside
from evle.search.models import can_match, fingerprint, open_embedder, open_matcher, sharing_matcher
from evle.search.results import Change, Hit
from evle.search.store import DTYPES, Entry, Facts, Place, StaleError, Store, locked
from evle.storage import fetch, shown
from evle.terminal import ProgressLine

if TYPE_CHECKING:
    from evle.exported import pipelines as exported
    from evle.pipelines import EmbedPipeline, MatchPipeline

    Embedder = EmbedPipeline | exported.EmbedPipeline
    Matcher = MatchPipeline | exported.MatchPipeline

FLUSH_ROWS = 1024
FLUSH_SECONDS = 60.0
"""A build that is killed loses at most the work of FLUSH_ROWS images or FLUSH_SECONDS."""

ATTEMPTS = 10
"""Attempts of a reader while another process changes the index."""


def build_index(
    model: "str | Path | Embedder",
    images: str | Path,
    output: str | Path,
    *,
    batch_size: int = 32,
    num_workers: int = 2,
    dtype: str = "float16",
    device: str | None = None,
    progress: bool = True,
) -> "ImageIndex":
    """`ImageIndex.build` with the pipeline's options; `.change` of the result reports what was done."""
    if isinstance(model, str | Path):
        options = {} if device is None else {"device": device}
        model = open_embedder(model, batch_size=batch_size, num_workers=num_workers, **options)
    return ImageIndex.build(model, images, output, dtype=dtype, progress=progress)


class ImageIndex:
    """Embeddings of the images under one root, and the model that made them.

    `change` reports what the last `build`, `add` or `remove` did. Other processes may read the index while one changes
    it; a second process that wants to change it waits for the first.

    >>> index = ImageIndex.build("runs/retrieval", "photos", "photos.index")  # doctest: +SKIP
    >>> index.query("a dog on a beach", k=3)[0].key  # doctest: +SKIP
    '2019/08/rex.jpg'
    """

    def __init__(
        self,
        store: Store,
        model: "Embedder | str | Path | None",
        *,
        root: Path | None = None,
        match_model: "Matcher | str | Path | None" = None,
        **options: int,
    ):
        self.store = store
        self.change = Change()
        self._model = model
        self._root = root
        self._match_model = match_model
        self._options = options
        self._approximate: tuple[Store, scanning.Approximate | None] | None = None

    @classmethod
    def build(
        cls,
        model: "str | Path | Embedder",
        images: str | Path,
        output: str | Path,
        *,
        dtype: str = "float16",
        progress: bool = True,
    ) -> Self:
        """Index a folder of images, or those that a table names, into the folder `output`.

        Where `output` already is an index of this folder, or of one above it, by this model, it is brought up to date:
        an interrupted build resumes by the same call. Unreadable images are named in `change.skipped`. Raises DataError
        for a folder without images or an `output` that is something else, CheckpointError for an index of another
        model.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} cannot store embeddings; {nearest(dtype, DTYPES)}")
        images, output = fetch(images), Path(output)
        root = folder_of(images)
        is_new = not (output / "index.json").is_file()
        listed = list_entries(images, root) if is_new else None  # refuses a folder without images before any writing
        embed = open_embedder(model) if isinstance(model, str | Path) else model
        if output.exists() and is_new and not _is_empty(output):
            raise DataError(f"{output} exists and is not an index; give a new or empty folder as output")
        with locked(output):
            if (output / "index.json").is_file():
                index, listed = cls.load(output, model=embed), None
                if not root.resolve().is_relative_to(index.root.resolve()):
                    cure = cure_of_moving(root, index.root) or "give another output"
                    raise DataError(f"{output} is an index of {index.root}, not of {root}; {cure}")
            else:
                facts = Facts(
                    root=Place.of(root, output),
                    model=Place.of(Path(embed.source), output) if Path(embed.source or "/nowhere").exists() else None,
                    fingerprint=fingerprint(embed),
                    dimension=embed.dimension,
                    dtype=dtype,
                    model_name=shown(embed.source) if embed.source else embed.source,
                )
                index = cls(Store(output, facts).create(), embed)
                index.embed = embed  # its fingerprint is the header's: no need to read all weights again
        index._add(images, listed, progress=progress)
        return index

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: "str | Path | Embedder | None" = None,
        root: str | Path | None = None,
        match_model: "str | Path | Matcher | None" = None,
        batch_size: int = 32,
        num_workers: int = 2,
    ) -> Self:
        """Open an index. The model is loaded at the first query: `model`, or the one that the index remembers.

        `root` is the images' folder, if it moved without the index; `match_model` re-ranks instead of the index's own
        model. `batch_size` and `num_workers` are those of a model that is loaded. Raises DataError for a folder that is
        not an index or is damaged.
        """
        if root is not None and not Path(root).is_dir():
            raise DataError(f"root {root}: no such folder; give the folder that holds the indexed images")
        options = {"batch_size": batch_size, "num_workers": num_workers}
        folder = None if root is None else Path(root)
        return cls(Store.load(fetch(path)), model, root=folder, match_model=match_model, **options)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def path(self) -> Path:
        """The index's own folder."""
        return self.store.path

    @property
    def root(self) -> Path:
        """The folder that the images' paths are relative to."""
        return self._root or self.store.facts.root.seen_from(self.path)

    @property
    def keys(self) -> list[str]:
        """The images' paths relative to the root, in the order of the rows."""
        return [entry.path for entry in self._latest().entries()]

    @cached_property
    def embed(self) -> "Embedder":
        """The model that made the index. Raises CheckpointError when it is gone or has changed."""
        facts = self.store.facts
        if isinstance(self._model, str | Path):
            pipeline = open_embedder(self._model, **self._options)
        elif self._model is not None:
            pipeline = self._model
        elif facts.model is not None:
            pipeline = open_embedder(fetch(shown(facts.model.seen_from(self.path))), **self._options)
        elif facts.model_name:
            pipeline = open_embedder(facts.model_name, **self._options)
        else:
            raise CheckpointError(f"{self.path} was made by a model in memory; give that model")
        if fingerprint(pipeline) != facts.fingerprint:
            where = pipeline.source or "the given model"
            raise CheckpointError(
                f"{self.path} was made by another model than {where}: their vectors cannot be compared; "
                "give the model that it was made with, or build the index again"
            )
        return pipeline

    @cached_property
    def match(self) -> "Matcher":
        """The model that judges image and text together: `match_model`, or the index's own model."""
        if isinstance(self._match_model, str | Path):
            return open_matcher(self._match_model)
        if self._match_model is not None:
            return self._match_model
        embed = self.embed
        if not can_match(embed):
            raise ConfigError(
                f"{embed.source or 'the model of this index'} embeds images and texts and cannot match them; "
                "name an EVE or VLE that can with --rerank-model (match_model=)"
            )
        return sharing_matcher(embed)

    # --------------------------------------------------------------------------------------------------------- queries

    def query(
        self,
        text: str | None = None,
        *,
        image: ImageSource | None = None,
        k: int = 10,
        rerank: int = 0,
        where: Filter | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The `k` best images for a text or for an image, best first; fewer where the index is smaller.

        `rerank` looks at that many of the best again, together with the text, and orders them by the match probability.
        `where` leaves images out. `exact` ignores the approximate index, which a large index may have. Raises
        ConfigError for impossible questions, SampleError for an image that cannot be read, DataError for an empty
        index.
        """
        return self.query_many(
            texts=None if text is None else [text],
            images=None if image is None else [image],
            k=k,
            rerank=rerank,
            where=where,
            exact=exact,
        )[0]

    def query_many(
        self,
        *,
        texts: Sequence[str] | None = None,
        images: Sequence[ImageSource] | None = None,
        k: int = 10,
        rerank: int = 0,
        where: Filter | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """`query` for several texts, or several images, in one pass over the index."""
        if (texts is None) == (images is None):
            raise ConfigError("search by a text or by an image: give one of the two")
        k, rerank = at_least(1, k, "k"), at_least(0, rerank, "rerank")
        if not isinstance(where, Filter | None):
            raise ConfigError(f"where is {where!r}; give a Filter, such as Filter(where=['year>=2019'])")
        if rerank and texts is None:
            raise ConfigError("re-ranking reads a text with each image, and an image as query has none: use rerank=0")
        texts, images = None if texts is None else as_texts(texts), None if images is None else as_images(images)
        if not (texts or images):
            return []
        if texts is not None and any(not text.strip() for text in texts):
            raise ConfigError("the query is empty; give a text to look for")
        if not len(self._latest()):
            raise DataError(f"{self.path}: the index is empty; add images to it with `evle index`")
        if rerank:
            _ = self.match  # an error of the matching model comes before the work
        queries = np.asarray(self.embed.images(images or []) if texts is None else self.embed.texts(texts))
        results = self._search(queries, max(k, rerank), where, exact)
        if rerank and texts is not None:
            results = [self._reranked(text, hits, rerank) for text, hits in zip(texts, results, strict=True)]
        return [hits[:k] for hits in results]

    def _latest(self) -> Store:
        """The index as it is now, also where another process has changed it."""
        if not self.store.is_current():
            self.store = Store.load(self.path)
        return self.store

    def _search(self, queries: np.ndarray, k: int, where: Filter | None, exact: bool) -> list[list[Hit]]:
        for _ in range(ATTEMPTS):
            store = self._latest()
            try:
                scores, rows = self.nearest_rows(queries, k, where=where, exact=exact, store=store)
                return [
                    [self._hit(store, row, score) for row, score in zip(*line, strict=True)]
                    for line in zip(rows.tolist(), scores.tolist(), strict=True)
                ]
            except StaleError:
                time.sleep(0.05)
        raise DataError(f"{self.path}: another process keeps changing this index; repeat the search when it has ended")

    def nearest_rows(
        self,
        queries: np.ndarray,
        k: int,
        *,
        where: Filter | None = None,
        exact: bool = True,
        store: Store | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, k) float32 and rows (Q, k) int64 of the largest dot products with `queries` (Q, D).

        Equal scores stand in the order of the index.
        """
        store = store or self._latest()
        approximate = None if exact or where else self._approximate_of(store)
        if approximate is not None:
            return approximate.nearest_rows(store, queries, k)
        return scanning.nearest_rows(store, queries, k, where.mask if where else None)

    def _approximate_of(self, store: Store) -> scanning.Approximate | None:
        known = self._approximate
        if known is None or known[0] is not store:
            self._approximate = known = (store, scanning.Approximate.load(store))
        return known[1]

    def _reranked(self, text: str, hits: list[Hit], rerank: int) -> list[Hit]:
        """The first `rerank` hits by match probability; behind them those whose image has gone."""
        first = hits[:rerank]
        found, failures = self.match.margins([hit.path for hit in first], text)
        margins = np.asarray(found, np.float64)
        seen = [row for row in range(len(first)) if row not in failures]
        seen.sort(key=lambda row: -float(margins[row]))
        judged = [replace(first[row], match=float(np.exp(-np.logaddexp(0, -margins[row])))) for row in seen]
        return judged + [first[row] for row in sorted(failures)] + hits[rerank:]

    def _hit(self, store: Store, row: int, score: float) -> Hit:
        entry = store.entry(row)
        fields = json.loads(entry.fields or "{}")
        return Hit(score, entry.path, self.root / entry.path, fields=fields, changed=entry.mtime / 1e9)

    # -------------------------------------------------------------------------------------------------------- changes

    def add(self, images: str | Path, *, progress: bool = True) -> Change:
        """Bring the index up to date with a folder at or below its root, or with a table.

        New and changed images are embedded, those that vanished from there leave the index, the rest is kept. A file
        whose contents are known already keeps its vector, whatever its name and time. The columns of the table, also
        of one in the folder, are kept for filters and pages of results, as long as a table has them. What is done is
        saved every FLUSH_ROWS images or FLUSH_SECONDS, and when the work is interrupted.
        """
        return self._add(fetch(images), None, progress=progress)

    def _add(self, images: Path, listed: tuple[dict[str, Entry], list[str]] | None, *, progress: bool) -> Change:
        """`add`, where `listed` is what `list_entries` found a moment ago."""
        started = time.monotonic()
        embed = self.embed
        with locked(self.path):
            store = self.store = self._latest()
            self.change = change = Change()
            present, change.skipped = listed or list_entries(images, self.root)
            known = {entry.path: (row, entry) for row, entry in enumerate(store.entries())}
            new = self._plan(images, present, known, change)
            root = self.root
            by_digest = {entry.digest: row for row, entry in known.values() if entry.digest}
            new = [hashed(entry, root) for entry in new]
            reused = [entry for entry in new if entry.digest in by_digest]
            vectors = store.vectors([by_digest[entry.digest] for entry in reused]).astype(np.float32)
            change.num_reused = len(reused)
            change.changed = [path for path in change.changed if path not in {entry.path for entry in reused}]
            store = store.drop({*change.vanished, *(entry.path for entry in new if entry.path in known)})
            self.store = store = store.append(vectors, reused) if reused else store
            try:
                self._embed_new([entry for entry in new if entry.digest not in by_digest], embed, change, progress)
            finally:
                change.seconds = time.monotonic() - started
            if not len(self.store) and change.skipped:
                raise DataError(
                    f"{images}: none of {len(change.skipped)} images could be read; first: {change.skipped[0]}"
                )
            if len(self.store) >= scanning.APPROXIMATE_FROM and self._approximate_of(self.store) is None:
                try:
                    self._approximate = (self.store, scanning.Approximate.build(self.store))
                except ConfigError as error:
                    change.note = f"searching exactly: {error}"
            if (approximate := self._approximate) and approximate[1] is not None:
                change.recall = approximate[1].recall
        return change

    def _plan(
        self, images: Path, present: dict[str, Entry], known: dict[str, tuple[int, Entry]], change: Change
    ) -> list[Entry]:
        """The entries to write, after noting in `change` what vanished, changed and stays."""
        inside = path_inside(folder_of(images), self.root)
        old = [path for path in known if not inside or path.startswith(inside + "/")]
        # A table may name only some of a folder's images: what it leaves out has not vanished.
        change.vanished = [path for path in old if path not in present and is_gone(self.root / path)]
        new = []
        others = OtherTables(images, self.root)
        for path, entry in present.items():
            before = known[path][1] if path in known else None
            if before is not None and before.fields and not entry.fields and others.name(path):
                entry = replace(entry, fields=before.fields)  # of a table that this call does not read
            if before is None or replace(before, digest="") != entry:
                new.append(entry)
                if before is not None:
                    change.changed.append(path)
        change.num_kept = len(known) - len(change.vanished) - len(change.changed)
        return new

    def _embed_new(self, new: list[Entry], embed: "Embedder", change: Change, progress: bool) -> None:
        features: list[np.ndarray] = []
        entries: list[Entry] = []
        flushed = time.monotonic()
        try:
            with ProgressLine(len(new), "images", visible=progress) as line:
                for batch in embed.image_batches(self.root / entry.path for entry in new):
                    features.append(np.asarray(batch.features))
                    entries += [new[row] for row in batch.rows]
                    change.skipped += [_about(error, new[row].path) for row, error in batch.failures.items()]
                    line.advance(len(batch.rows) + len(batch.failures))
                    if len(entries) >= FLUSH_ROWS or (entries and time.monotonic() - flushed > FLUSH_SECONDS):
                        done = len(entries)
                        # Forgotten only when they are written: an interrupt or an error meanwhile leaves them to the
                        # last attempt below, which starts from the same state and so writes none of them twice.
                        self.store, features, entries = self.store.append(np.concatenate(features), entries), [], []
                        change.num_added += done
                        flushed = time.monotonic()
        finally:
            if entries:
                self.store = self.store.append(np.concatenate(features), entries)
                change.num_added += len(entries)

    def remove(self, *patterns: str | Path) -> Change:
        """Take images out of the index; their files stay. A pattern is a path relative to the root, a folder, or has
        wildcards ("2019/*.png"). Raises DataError for a pattern that fits no image."""
        started = time.monotonic()
        with locked(self.path):
            paths = [entry.path for entry in self._latest().entries()]
            gone: dict[str, None] = {}
            for pattern in map(str, patterns):
                wanted = pattern.strip("/").removeprefix("./")
                fitting = [path for path in paths if path == wanted or path.startswith(wanted + "/")]
                fitting = fitting or [path for path in paths if fnmatch(path, wanted)]
                if not fitting:
                    raise DataError(
                        f"{self.path}: no image fits {pattern!r}; `evle index -o {self.path} --list` lists them"
                    )
                gone.update(dict.fromkeys(fitting))
            self.store = self.store.drop(set(gone))
            kept = len(paths) - len(gone)
            self.change = Change(num_kept=kept, vanished=list(gone), seconds=time.monotonic() - started)
        return self.change

    def move_root(self, root: str | Path) -> None:
        """Remember that the images are in the folder `root` now, where it moved without the index. Nothing is embedded.

        Raises DataError for a folder that does not exist or holds none of the images.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"root {root}: no such folder; give the folder that holds the indexed images")
        with locked(self.path):
            store = self._latest()
            if len(store) and all(is_gone(root / entry.path) for entry in store.entries()):
                raise DataError(f"root {root}: holds no image of {self.path}, such as {store.entry(0).path}")
            self.store = replace(store, facts=replace(store.facts, root=Place.of(root, self.path))).create()
            self._root = None

    def columns(self) -> list[str]:
        """The columns of the table by which results can be filtered."""
        return sorted({name for entry in self._latest().entries() for name in json.loads(entry.fields or "{}")})

    def stats(self) -> dict[str, Any]:
        """Facts about the index: images, bytes on disk, root, model and the time of the last change."""
        store = self._latest()
        files = [file for file in self.path.rglob("*") if file.is_file()]
        facts = store.facts
        return {
            "images": len(store),
            "shards": len(store.shards),
            "dimension": facts.dimension,
            "dtype": facts.dtype,
            "bytes": sum(file.stat().st_size for file in files),
            "root": str(self.root),
            "model": facts.model_name or "(in memory)",
            "changed": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((self.path / "index.json").stat().st_mtime)),
        }


def _about(error: SampleError, path: str) -> str:
    return str(error) if path in str(error) else f"{path}: {error}"


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what an interrupted build leaves before its first index.json."""
    return folder.is_dir() and all(child.name in (".lock", "shards") for child in folder.iterdir())
