"""Search images by words or by another image: an index of embeddings that grows and is searched exactly.

A search reads one shard of the index at a time, so its memory does not grow with the index; re-ranking looks at the
best images again, together with the text.

Legend: Q queries, N rows of the index, D dimension, k hits a query.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Self

import torch
from torch import Tensor

from evle.data.custom.folder import EMBEDDED_COLUMNS, image_of
from evle.data.formats.embedded import embedded_column
from evle.data.formats.table_files import TABLE_SUFFIXES, list_images, read_rows
from evle.data.images import describe_source, open_image
from evle.data.samples import ImageSource
from evle.errors import CheckpointError, ConfigError, DataError, SampleError, nearest
from evle.pipelines import EmbedPipeline, MatchPipeline, as_images, as_texts
from evle.report import Cell, Gallery, GalleryRow, Report, write_whole
from evle.search.store import DTYPES, SHARD_ROWS, Entry, Facts, Place, Store, writing
from evle.terminal import ProgressLine

NAMED = 20
FLUSH_SECONDS = 60.0  # a build that is killed loses at most this much work


@dataclass(frozen=True)
class Hit:
    """One image found.

    `score` is the cosine similarity; `match`, where hits were re-ranked, the probability that the text is true of it.
    `key` is the image's path relative to the index's root, `path` where it should be on this machine.
    """

    score: float
    key: str
    path: Path
    match: float | None = None


@dataclass
class Change:
    """What a build or an addition did: images embedded and kept, those gone or changed, a line for each unreadable.

    A changed image is embedded again, and counted in `num_added` too.
    """

    num_added: int = 0
    num_kept: int = 0
    vanished: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        """The counts on one line, then up to NAMED of the images that could not be read, a line each."""
        counts = f"{self.num_added} added, {self.num_kept} kept in {self.seconds:.1f} s"
        for names, what in ((self.changed, "changed"), (self.vanished, "gone"), (self.skipped, "could not be read")):
            if names:
                counts += f", {len(names)} {what}"
        more = [f"... and {len(self.skipped) - NAMED} more"] if len(self.skipped) > NAMED else []
        return "\n  ".join([counts, *self.skipped[:NAMED], *more])


def build_index(
    model: str | Path | EmbedPipeline,
    pictures: str | Path,
    output: str | Path,
    *,
    batch_size: int = 32,
    num_workers: int = 2,
    dtype: str = "float16",
    device: str | None = None,
    progress: bool = True,
) -> "ImageIndex":
    """`ImageIndex.build` with the pipeline's options beside it; `.change` of the result says what was done."""
    if not isinstance(model, EmbedPipeline):
        model = EmbedPipeline(model, batch_size=batch_size, num_workers=num_workers, device=device)
    return ImageIndex.build(model, pictures, output, dtype=dtype, progress=progress)


class ImageIndex:
    """Embeddings of the images under one root, and the model that made them.

    `change` says what the last `build` or `add` did.

    >>> index = ImageIndex.build("runs/retrieval", "photos", "photos.index")  # doctest: +SKIP
    >>> index.query("a dog on a beach", k=3)[0].key  # doctest: +SKIP
    '2019/08/rex.jpg'
    """

    def __init__(self, store: Store, model: EmbedPipeline | str | Path | None):
        self.store = store
        self.change = Change()
        self._model = model

    @classmethod
    def build(
        cls,
        model: str | Path | EmbedPipeline,
        pictures: str | Path,
        output: str | Path,
        *,
        dtype: str = "float16",
        progress: bool = True,
    ) -> Self:
        """Index a folder of images (or those a table names) into the folder `output`.

        Where `output` already is an index of this folder, or of one above it, by this model, the build goes on: what is
        there is kept, so an interrupted build resumes by the same call. Unreadable images are named in
        `change.skipped`. Raises DataError for a folder without images or an `output` that is something else,
        CheckpointError for an index of another model.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} is no form of embeddings; {nearest(dtype, DTYPES)}")
        output, root = Path(output), _root(Path(pictures))
        embed = model if isinstance(model, EmbedPipeline) else EmbedPipeline(model)
        if (output / "index.json").is_file():
            index = cls.load(output, model=embed)
            if not root.resolve().is_relative_to(index.root.resolve()):
                raise DataError(f"{output} is an index of {index.root}, not of {root}; give another output")
        else:
            if output.exists() and (not output.is_dir() or any(output.iterdir())):
                raise DataError(f"{output} exists and is no index; give a new or empty folder as output")
            facts = Facts(
                root=Place.of(root, output),
                model=Place.of(Path(embed.source), output) if embed.source else None,
                fingerprint=fingerprint(embed),
                dimension=embed.dimension,
                dtype=dtype,
            )
            index = cls(Store(output, facts), embed)
            index.embed = embed  # its fingerprint is the header's: no need to read all weights once more
        index.add(pictures, progress=progress)
        return index

    @classmethod
    def load(
        cls, path: str | Path, *, model: str | Path | EmbedPipeline | None = None, root: str | Path | None = None
    ) -> Self:
        """Open an index. The model is loaded at the first query: `model`, or the one the index remembers.

        `root` says where the images are now, if they moved without the index. Raises DataError for a folder that is
        not an index or is damaged.
        """
        store = Store.load(Path(path))
        if root is not None:
            store.facts = replace(store.facts, root=Place.of(Path(root), store.path))
        return cls(store, model)

    def __len__(self) -> int:
        return sum(map(len, self.store.entries))

    @property
    def path(self) -> Path:
        """The index's own folder."""
        return self.store.path

    @property
    def root(self) -> Path:
        """The folder that the images' paths are relative to."""
        return self.store.facts.root.seen_from(self.path)

    @property
    def keys(self) -> list[str]:
        """The images' paths relative to the root, in the order of the rows."""
        return [entry.path for shard in self.store.entries for entry in shard]

    @cached_property
    def embed(self) -> EmbedPipeline:
        """The model that made the index. Raises CheckpointError when it is gone or is not the same any more."""
        if isinstance(self._model, EmbedPipeline):
            pipeline = self._model
        elif self._model is not None:
            pipeline = EmbedPipeline(self._model)
        elif self.store.facts.model is None:
            raise CheckpointError(f"{self.path} was made by a model in memory; give that model")
        else:
            pipeline = EmbedPipeline(self.store.facts.model.seen_from(self.path))
        if fingerprint(pipeline) != self.store.facts.fingerprint:
            where = pipeline.source or "the given model"
            raise CheckpointError(
                f"{self.path} was made by another model than {where}: their vectors cannot be compared; "
                "give the model it was made with, or build the index again"
            )
        return pipeline

    @cached_property
    def match(self) -> MatchPipeline:
        """The same model as a judge of image and text together."""
        embed = self.embed
        return MatchPipeline(
            model=embed.model,
            processor=embed.processor,
            text=embed.text,
            batch_size=embed.batch_size,
            num_workers=embed.num_workers,
        )

    # ---------------------------------------------------------------------------------------------------------- queries

    def query(
        self, text: str | None = None, *, image: ImageSource | None = None, k: int = 10, rerank: int = 0
    ) -> list[Hit]:
        """The `k` best images for a text or for an image, best first; fewer where the index is smaller.

        `rerank` looks at that many of the best again, together with the text, and orders them by the match probability.
        Raises ConfigError for impossible questions, SampleError for an image that cannot be read, DataError for an
        empty index.
        """
        return self.query_many(
            texts=None if text is None else [text], images=None if image is None else [image], k=k, rerank=rerank
        )[0]

    def query_many(
        self,
        *,
        texts: Sequence[str] | None = None,
        images: Sequence[ImageSource] | None = None,
        k: int = 10,
        rerank: int = 0,
    ) -> list[list[Hit]]:
        """`query` for several texts, or several images, in one pass over the index."""
        if (texts is None) == (images is None):
            raise ConfigError("search by a text or by an image: give one of the two")
        if k < 1 or rerank < 0:
            raise ConfigError(f"k is {k} and rerank {rerank}; at least 1 and 0 are needed")
        if rerank and texts is None:
            raise ConfigError("re-ranking reads a text with each image, and an image as query has none: use rerank=0")
        if texts is not None and any(not text.strip() for text in texts):
            raise ConfigError("the query is empty; say what to look for")
        if not len(self):
            raise DataError(f"{self.path}: the index is empty; add images to it with `evle index`")
        queries = self.embed.texts(as_texts(texts)) if texts is not None else self.embed.images(as_images(images or []))
        scores, rows = self.nearest_rows(queries, max(k, rerank))
        found = [
            [self._hit(row, score) for row, score in zip(*line, strict=True)]
            for line in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
        if rerank and texts is not None:
            found = [self._reranked(text, hits, rerank) for text, hits in zip(texts, found, strict=True)]
        return [hits[:k] for hits in found]

    def nearest_rows(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores (Q, k) float32 and rows (Q, k) int64 of the largest dot products with `queries` (Q, D), exact.

        Memory is of the order Q x (k + SHARD_ROWS), whatever the size of the index.
        """
        best = torch.empty(len(queries), 0)
        rows = torch.empty(len(queries), 0, dtype=torch.long)
        start = 0
        for features in self.store.features():
            scores = torch.cat([best, queries.float() @ features.float().T], dim=1)
            here = torch.arange(start, start + len(features)).expand(len(queries), -1)
            best, places = scores.topk(min(k, scores.shape[1]), dim=1)
            rows = torch.cat([rows, here], dim=1).gather(1, places)
            start += len(features)
        return best, rows

    def _reranked(self, text: str, hits: list[Hit], rerank: int) -> list[Hit]:
        """The first `rerank` hits by match probability; behind them those whose image is gone by now."""
        first = hits[:rerank]
        margins, failures = self.match.margins([hit.path for hit in first], text)
        seen = [row for row in range(len(first)) if row not in failures]
        seen.sort(key=lambda row: -float(margins[row]))
        judged = [
            Hit(first[row].score, first[row].key, first[row].path, float(torch.sigmoid(margins[row]))) for row in seen
        ]
        return judged + [first[row] for row in sorted(failures)] + hits[rerank:]

    def _hit(self, row: int, score: float) -> Hit:
        for shard in self.store.entries:
            if row < len(shard):
                return Hit(score, shard[row].path, self.root / shard[row].path)
            row -= len(shard)
        raise IndexError(row)

    # --------------------------------------------------------------------------------------------------------- building

    def add(self, pictures: str | Path, *, progress: bool = True) -> Change:
        """Bring the index up to date with a folder at or below its root, or with a table.

        New and changed images are embedded, those that vanished from there leave the index, the rest is kept. What is
        done is saved every SHARD_ROWS images or FLUSH_SECONDS, and when the work is interrupted.
        """
        started = time.monotonic()
        embed = self.embed
        self.change = change = Change()
        found = self._found(Path(pictures), change)
        inside = _inside(_root(Path(pictures)), self.root)
        known = {entry.path: entry for shard in self.store.entries for entry in shard}
        old = [path for path in known if not inside or path.startswith(inside + "/")]
        root = self.root
        # A table may name only some of a folder's images: what it leaves out has not vanished.
        change.vanished = [path for path in old if path not in found and not (root / path).exists()]
        change.changed = [path for path in old if path in found and found[path] != known[path]]
        change.num_kept = len(known) - len(change.vanished) - len(change.changed)
        new = [entry for path, entry in found.items() if known.get(path) != entry]
        self.store.drop({*change.vanished, *change.changed})
        features: list[Tensor] = []
        entries: list[Entry] = []
        flushed = time.monotonic()
        try:
            with ProgressLine(len(new), "images", visible=progress) as line:
                for batch in embed.image_batches(root / entry.path for entry in new):
                    features.append(batch.features)
                    entries += [new[row] for row in batch.rows]
                    change.skipped += [_about(error, new[row].path) for row, error in batch.failures.items()]
                    line.advance(len(batch.rows) + len(batch.failures))
                    if len(entries) >= SHARD_ROWS or (entries and time.monotonic() - flushed > FLUSH_SECONDS):
                        # Taken out first: should writing fail, the last attempt below must not write them twice.
                        rows, features, done, entries = torch.cat(features), [], entries, []
                        self.store.append(rows, done)
                        change.num_added += len(done)
                        flushed = time.monotonic()
        finally:
            if entries:
                self.store.append(torch.cat(features), entries)
                change.num_added += len(entries)
            change.seconds = time.monotonic() - started
        if not len(self) and change.skipped:
            raise DataError(
                f"{pictures}: none of {len(change.skipped)} images could be read; first: {change.skipped[0]}"
            )
        return change

    def _found(self, pictures: Path, change: Change) -> dict[str, Entry]:
        """The images that are there now, by path relative to the root; those of a table that are not are named."""
        inside = _inside(_root(pictures), self.root)
        names = _named(pictures) if pictures.is_file() else list_images(pictures)
        paths = [os.path.join(inside, name) for name in names]
        found = {}
        for path in paths:
            try:
                facts = os.stat(self.root / path)
            except OSError as error:
                change.skipped.append(f"{path}: {error.strerror}")
                continue
            path = PurePosixPath(path).as_posix()
            found[path] = Entry(path, facts.st_size, facts.st_mtime_ns)
        if not paths:
            raise DataError(f"{pictures}: no images there")
        return found


def write_contact_sheet(
    hits: Sequence[Hit], query: str, path: str | Path, *, query_image: ImageSource | None = None
) -> Path:
    """The hits as one HTML page of images at `path`; `query` is the text asked for, or the name of `query_image`.

    An image that cannot be read any more is named instead of shown.
    """
    rows = []
    if query_image is not None:
        rows.append(GalleryRow("Looked for", [_cell(query_image, describe_source(query_image))]))
    cells = [
        _cell(hit.path, f"{hit.score:.3f}" + ("" if hit.match is None else f", match {hit.match:.1%}") + f" {hit.key}")
        for hit in hits
    ]
    rows.append(GalleryRow("", cells, note="" if hits else "No image was found."))
    report = Report(f"Search: {query}", galleries=[Gallery(f"{len(hits)} images, the best first", rows)])
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, report.html())
    return path


def fingerprint(pipeline: EmbedPipeline) -> str:
    """A hash of all that decides an embedding: every weight, and how images and words become numbers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(pipeline.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    images = pipeline.processor.image_processor
    facts = [dict(images.size), list(images.image_mean), list(images.image_std)]
    digest.update(json.dumps([*facts, sorted(pipeline.processor.tokenizer.get_vocab().items())]).encode())
    return digest.hexdigest()


def _root(pictures: Path) -> Path:
    if pictures.is_file():
        if pictures.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(f"{pictures}: give a folder of images, or a table ({', '.join(TABLE_SUFFIXES)})")
        return pictures.parent
    if not pictures.is_dir():
        raise DataError(f"{pictures}: no such folder")
    return pictures


def _named(table: Path) -> list[str]:
    """The images of a table, each once, relative to its folder; whatever else the table says of them.

    Raises DataError for a broken row, an image outside of the folder, and a table that holds its images inside.
    """
    if table.suffix.lower() == ".parquet" and (column := embedded_column(table, None, EMBEDDED_COLUMNS)) is not None:
        raise DataError(
            f"{table}: holds the images themselves (column {column!r}), but an index names files, "
            "to show them again; write them into a folder and index that"
        )
    names: dict[str, None] = {}
    base = os.path.abspath(table.parent)
    for line, row in read_rows(table):
        if isinstance(row, DataError):
            raise row
        name = image_of(row, None, f"{table}:{line}", table.parent)
        names.setdefault(os.path.relpath(os.path.join(base, name), base))
    return list(names)


def _inside(pictures: Path, root: Path) -> str:
    """The path from `root` to a folder at or below it, "" for `root` itself."""
    try:
        relative = pictures.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise DataError(
            f"{pictures} lies outside of the index's root {root}; make another index, or one of a folder above both"
        ) from None
    return "" if relative == "." else relative


def _about(error: SampleError, path: str) -> str:
    return str(error) if path in str(error) else f"{path}: {error}"


def _cell(source: ImageSource, text: str) -> Cell:
    try:
        return Cell(open_image(source, size_hint=448), text)
    except SampleError as error:
        return Cell(None, f"{text}: cannot be shown ({error})")
