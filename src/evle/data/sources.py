"""Where samples come from: every source by its name in a recipe, and several sources mixed."""

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from evle.data.corpora.captions import coco_captions, karpathy
from evle.data.corpora.easy_vqa import easy_vqa
from evle.data.corpora.nlvr import nlvr
from evle.data.corpora.nlvr2 import nlvr2
from evle.data.corpora.vcr import vcr
from evle.data.corpora.visual_genome import visual_genome
from evle.data.corpora.vqav2 import vqav2
from evle.data.corpora.web_captions import conceptual_captions, sbu
from evle.data.corpora.xvlm import xvlm
from evle.data.custom.folder import folder
from evle.data.custom.saved_datasets import is_saved_dataset, saved_dataset
from evle.data.custom.shards import shards
from evle.data.formats.table_files import TABLE_STEMS, TABLE_SUFFIXES
from evle.data.samples import CaptionSample, MadeSamples, Sample, num_left_out
from evle.data.synthetic.boxes import boxes
from evle.data.synthetic.cutouts import cutouts
from evle.data.synthetic.scenes import scenes
from evle.data.synthetic.swaps import swaps
from evle.errors import ConfigError, nearest
from evle.storage import fetch, is_url

SOURCES: dict[str, Callable[..., Sequence[Sample]]] = {
    "scenes": scenes,
    "cutouts": cutouts,
    "swaps": swaps,
    "boxes": boxes,
    "folder": folder,
    "shards": shards,
    "saved-dataset": saved_dataset,
    "karpathy": karpathy,
    "coco-captions": coco_captions,
    "xvlm": xvlm,
    "visual-genome": visual_genome,
    "sbu": sbu,
    "cc": conceptual_captions,
    "easy-vqa": easy_vqa,
    "vqav2": vqav2,
    "nlvr": nlvr,
    "nlvr2": nlvr2,
    "vcr": vcr,
}
"""Each takes `task` ("captions", "vqa", "nlvr2", "vcr", "swaps"), `split` and its own options, and returns a lazy,
picklable sequence of samples with a `fingerprint` of the data's identity and `describe() -> dict` of plain facts."""


def read_source(name: str, options: dict[str, Any]) -> Sequence[Sample]:
    """The samples of source `name`.

    Raises ConfigError for an unknown name, unknown options (all at once) or missing ones.
    """
    if name not in SOURCES:
        raise ConfigError(f"data source {name!r} does not exist; {nearest(name, SOURCES)}")
    parameters = inspect.signature(SOURCES[name]).parameters
    unknown = [f"{option!r} ({nearest(option, parameters)})" for option in options if option not in parameters]
    if unknown:
        raise ConfigError(f"data source {name!r} has no option {', '.join(unknown)}")
    missing = [
        key for key, each in parameters.items() if each.default is inspect.Parameter.empty and options.get(key) is None
    ]
    if missing:
        raise ConfigError(f"data source {name!r} needs {', '.join(f'{key}=...' for key in missing)}")
    return SOURCES[name](**{key: _local(value, name, key) for key, value in options.items()})


def _local(value: Any, source: str, option: str) -> Any:
    """An option with what it names by URL downloaded. Shards stay where they are: they are read at their offsets."""
    if isinstance(value, list):
        return [_local(each, source, option) for each in value]
    if not is_url(value) or (source == "shards" and option == "path"):
        return value
    return str(fetch(value))


def source_of(path: str | os.PathLike[str]) -> str:
    """The source that reads a folder or file as it is: a table (`folder`), `shards`, or a `saved-dataset`.

    A table under its usual name comes first: images and tars may be beside it.
    """
    base = Path(path)
    if base.suffix == ".tar":
        return "shards"
    stems = {stem for each in TABLE_STEMS.values() for stem in each}
    usual = (base / f"{stem}{suffix}" for stem in stems for suffix in TABLE_SUFFIXES)
    if not base.is_dir() or any(file.is_file() for file in usual):
        return "folder"
    if is_saved_dataset(base):
        return "saved-dataset"
    return "shards" if next(chain(base.glob("*.tar"), base.glob("*/*.tar")), None) is not None else "folder"


def mix(sources: Sequence[Sequence[Sample]], weights: Sequence[float] | None = None) -> "Mixture":
    """Several sources as one: weight 1 shows each sample of a source once an epoch, 2 twice, 0.5 every other sample.

    >>> first = [CaptionSample("a", b"", ("x",)), CaptionSample("b", b"", ("y",))]
    >>> [sample.key for sample in mix([first, first], [1, 0.5])]
    ['a', 'b', 'a']
    """
    weights = [1.0] * len(sources) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(sources):
        raise ConfigError(f"{len(weights)} weights for {len(sources)} sources; give one each")
    if any(not 0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"weights {weights} must be above 0; leave a source out instead of weighing it 0")
    return Mixture(list(sources), weights)


class Mixture(MadeSamples):
    """Sources one after another, each repeated or thinned by its weight. Returned by `mix`.

    A repetition has a key of its own ("a.jpg~2"), so that its augmentation and masks differ, and the same `match_id`.
    """

    def __init__(self, sources: list[Sequence[Sample]], weights: list[float]):
        self.sources, self.weights = sources, weights
        self._counts = [round(len(source) * weight) for source, weight in zip(sources, weights)]
        identity = repr([(getattr(source, "fingerprint", ""), weight) for source, weight in zip(sources, weights)])
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()

    @property
    def skipped(self) -> list[str]:
        """Rows that the sources left out."""
        return [line for source in self.sources for line in getattr(source, "skipped", ())]

    @property
    def num_skipped(self) -> int:
        return sum(map(num_left_out, self.sources))

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        facts: dict[str, Any] = {"samples": len(self)}
        for number, (source, weight, count) in enumerate(zip(self.sources, self.weights, self._counts), 1):
            own = source.describe() if hasattr(source, "describe") else {"samples": len(source)}
            facts[f"source {number}"] = {**own, "weight": weight, "shown": count}
        return facts

    def __len__(self) -> int:
        return sum(self._counts)

    def at(self, index: int) -> Any:
        for source, weight, count in zip(self.sources, self.weights, self._counts):
            if index < count:
                return _pick(source, index, count, weight)
            index -= count
        raise AssertionError("an index below the length is in one of the sources")


class Labelled(Mixture):
    """Sources with labels, which evaluations score one by one: the same images with captions in several languages, or
    several corpora. Samples of different sources may share keys."""

    def __init__(self, sources: Mapping[str, Sequence[Sample]]):
        super().__init__(list(sources.values()), [1.0] * len(sources))
        self.parts = dict(sources)

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report, by label."""
        facts = super().describe()
        return {"samples": len(self), **{label: facts[f"source {n}"] for n, label in enumerate(self.parts, 1)}}


def _pick(source: Sequence[Sample], position: int, count: int, weight: float) -> Sample:
    if weight < 1:  # evenly spread over the source
        return source[position * len(source) // count]
    turn, index = divmod(position, len(source))
    sample = source[index]
    if turn == 0:
        return sample
    key = f"{sample.key}~{turn + 1}"
    if isinstance(sample, CaptionSample):
        return replace(sample, key=key, match_id=sample.match_id or sample.key)
    return replace(sample, key=key)
