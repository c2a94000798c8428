"""The files of an image index: vectors and the images they belong to, in shards that are added and replaced whole.

    INDEX/index.json              which model, which root, which shards count (the one file that commits a change)
    INDEX/shards/N.safetensors    "features": up to SHARD_ROWS unit vectors (rows, D), float16 or float32
    INDEX/shards/N.jsonl          their images: path relative to the root, size in bytes, time of change in ns

A change writes new shards, then index.json, then deletes what no longer counts: whatever stops it, the index is whole.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from evle.errors import DataError
from evle.report import write_whole

FORMAT = 1
SHARD_ROWS = 1024
DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Entry:
    """One indexed image; two entries are the same image when path, size and time of change are."""

    path: str
    size: int
    mtime: int


@dataclass(frozen=True)
class Place:
    """A path remembered by itself and as seen from the index, so that both may move together."""

    path: str
    from_index: str

    @classmethod
    def of(cls, target: Path, index: Path) -> Self:
        return cls(str(target.resolve()), os.path.relpath(target.resolve(), index.resolve()))

    def seen_from(self, index: Path) -> Path:
        """Where it is now: beside the index as it was, else where it used to be."""
        beside = Path(os.path.normpath(index.resolve() / self.from_index))
        return beside if beside.exists() else Path(self.path)


@dataclass(frozen=True)
class Facts:
    """What holds for the whole index. `model` is None for one that was given in memory."""

    root: Place
    model: Place | None
    fingerprint: str
    dimension: int
    dtype: str


class Store:
    """The shards of one index. `entries` holds the images of each shard; vectors stay on the disk until asked for."""

    def __init__(self, path: Path, facts: Facts):
        self.path = path
        self.facts = facts
        self.entries: list[list[Entry]] = []
        self._names: list[str] = []

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read index.json and the lists of images. Raises DataError where it is not an index, or a damaged one."""
        file = path / "index.json"
        if not file.is_file():
            cure = f"make one with `evle index FOLDER -o {path} --model RUN`"
            raise DataError(f"{path} is no index (no index.json); {cure}")
        try:
            header = json.loads(file.read_text(encoding="utf-8"))
            number = header.pop("format")
            if number != FORMAT:
                raise DataError(f"{file}: format {number}, but this version reads {FORMAT}; build the index again")
            shards, root, model = header.pop("shards"), header.pop("root"), header.pop("model")
            store = cls(path, Facts(root=Place(**root), model=model and Place(**model), **header))
            for shard in shards:
                store._names.append(shard["name"])
                store.entries.append(_read_entries(path / "shards" / f"{shard['name']}.jsonl", shard["rows"]))
        except DataError:
            raise
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path}: damaged index ({error}); delete it and build it again") from error
        return store

    def features(self) -> Iterator[Tensor]:
        """The vectors (rows, D) of one shard after the other."""
        return map(self._features, self._names)

    def append(self, features: Tensor, entries: list[Entry]) -> None:
        """Add rows; a last shard that is not full is written anew with them. Raises DataError on a full disk."""
        names, listed = list(self._names), list(self.entries)
        features = features.to(DTYPES[self.facts.dtype])
        if listed and len(listed[-1]) < SHARD_ROWS:
            features = torch.cat([self._features(names.pop()), features])
            entries = listed.pop() + entries
        with writing(self.path):
            for start in range(0, len(entries), SHARD_ROWS):
                stop = start + SHARD_ROWS
                names.append(self._write_shard(features[start:stop], entries[start:stop], len(names)))
                listed.append(entries[start:stop])
            self._commit(names, listed)

    def drop(self, paths: set[str]) -> None:
        """Write the shards that hold any of `paths` anew without them; the first call makes the index's folder."""
        names, listed = [], []
        with writing(self.path):
            (self.path / "shards").mkdir(parents=True, exist_ok=True)
            for place, (name, entries) in enumerate(zip(self._names, self.entries, strict=True)):
                keep = [row for row, entry in enumerate(entries) if entry.path not in paths]
                if len(keep) < len(entries):
                    entries = [entries[row] for row in keep]
                    if not entries:
                        continue
                    name = self._write_shard(self._features(name)[keep], entries, place)
                names.append(name)
                listed.append(entries)
            self._commit(names, listed)

    def _features(self, name: str) -> Tensor:
        file = self.path / "shards" / f"{name}.safetensors"
        try:
            return safetensors.torch.load_file(file)["features"]
        except (OSError, KeyError, SafetensorError) as error:
            raise DataError(f"{file}: damaged shard ({error}); delete the index and build it again") from error

    def _write_shard(self, features: Tensor, entries: list[Entry], place: int) -> str:
        """Write one shard under a name that no committed shard has, and return that name."""
        folder = self.path / "shards"
        version = 0
        while (name := f"{place:06d}-{version}") in self._names:
            version += 1
        # Not save_file: its error on a full disk is no OSError.
        (folder / f"{name}.safetensors").write_bytes(safetensors.torch.save({"features": features.contiguous()}))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(asdict(e)) + "\n" for e in entries), encoding="utf-8")
        return name

    def _commit(self, names: list[str], entries: list[list[Entry]]) -> None:
        """Make these shards the index by replacing index.json, then delete the files that no longer count."""
        shards = [{"name": name, "rows": len(rows)} for name, rows in zip(names, entries, strict=True)]
        header: dict[str, Any] = {"format": FORMAT, **asdict(self.facts), "shards": shards}
        write_whole(self.path / "index.json", json.dumps(header, indent=1) + "\n")
        self._names, self.entries = names, entries
        committed = set(names)
        for file in (self.path / "shards").iterdir():
            if file.name.split(".")[0] not in committed:
                file.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full or read-only disk as one clear line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is whole; "
            "make room and give the same command again"
        ) from error


def _read_entries(file: Path, num_rows: int) -> list[Entry]:
    with open(file, encoding="utf-8") as lines:
        entries = [Entry(**json.loads(line)) for line in lines]
    if len(entries) != num_rows:
        raise DataError(f"{file}: {len(entries)} images, but index.json says {num_rows}; build the index again")
    return entries
