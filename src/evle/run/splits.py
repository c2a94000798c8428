"""The samples of a run: which sources each of its splits reads."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from evle.config import Config
from evle.data.custom.folder import Folder
from evle.data.samples import SPLITS, Samples, Split, readable
from evle.data.sources import SOURCES, Labelled, Mixture, mix, read_source
from evle.errors import ConfigError, DataError
from evle.storage import is_url, join

ROOT = "$root"
FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".tar")


def as_list(sources: Any) -> list[dict[str, Any]]:
    """The sources of one split: none, one, or several."""
    return list(sources) if isinstance(sources, list) else [sources] if sources is not None else []


def _is_test(option: str, name: str) -> bool:
    """Whether an option of a source names test data: splits such as test1 and test-dev, files such as vqa_test.json."""
    if option == "split":
        return name.lower().startswith("test")
    path = PurePath(name.lower())
    return path.suffix in FILES and re.search(r"(^|[^a-z])test([^a-z]|$)", path.stem) is not None


class DataConfig(Config):
    """Which samples to read. Each split is one source, `{source: NAME, ...its options}`, or a list of them with
    `weight`s."""

    path: str | None = None
    """The default `path` of every source that takes one."""
    root: str | None = None
    """The folder that replaces `$root` in the paths of sources, as in `path: $root/coco`."""
    train: dict[str, Any] | list[dict[str, Any]] | None = None
    """Training data."""
    val: dict[str, Any] | list[dict[str, Any]] | None = None
    """Validation data, on which the best weights are chosen."""
    test: dict[str, Any] | list[dict[str, Any]] | None = None
    """Test data, on which the final scores are measured once. Sources that each have a `label`, such as the captions of
    one language, are scored one by one; the scores are then means over the labels."""

    @model_validator(mode="after")
    def _test_is_not_for_choosing(self) -> "DataConfig":
        for source in as_list(self.val):
            for option in ("split", "files", "path"):
                names = source.get(option) or ()
                for name in [names] if isinstance(names, str) else names:
                    if _is_test(option, str(name)):
                        raise ValueError(
                            f"val reads the {option} {name!r}: the best weights would be chosen on test data and its "
                            "scores would mean nothing; choose on another split, or leave val out"
                        )
        if self.val is not None and as_list(self.val) == as_list(self.test):
            raise ValueError(
                "val and test are the same data: the best weights would be chosen on what they are measured on; "
                "leave test out"
            )
        return self


def refuse_unread_path(runs: Sequence[DataConfig], splits: Sequence[Split] = SPLITS) -> None:
    """Raise ConfigError if `data.path` is set but no source of the runs uses it; the error names what to set."""
    path = next((data.path for data in runs if data.path is not None), None)
    own: dict[str, None] = {}
    names: dict[str, None] = {}
    for data in runs:
        for split in splits:
            sources = getattr(data, split)
            for index, source in enumerate(as_list(sources)):
                takes_path = _takes_path(str(source.get("source")))
                if path is None or (takes_path and "path" not in source):
                    return
                names[str(source.get("source"))] = None
                if takes_path:
                    number = f".{index}" if isinstance(sources, list) else ""
                    own[f"data.{split}{number}.path={below_root(source['path'], data.root)}"] = None
    if own:
        roots = "data.root for all, or " if any(data.root is not None for data in runs) else ""
        raise ConfigError(
            f"data.path={path} has no effect: set {roots}{', '.join(own)} to your folders, one by one, or leave "
            "data.path out"
        )
    if names:
        raise ConfigError(
            f"data.path={path} has no effect: no source here reads a folder ({', '.join(names)}); leave it out"
        )


def refuse_unread_root(data: DataConfig, splits: Sequence[Split] = SPLITS) -> None:
    """Raise ConfigError if no source of these splits uses `data.root`."""
    sources = [source for split in splits for source in as_list(getattr(data, split))]
    if not any(ROOT in str(value) for source in sources for value in source.values()):
        raise ConfigError(
            f"data.root={data.root} has no effect: no source here has a path that begins with {ROOT}; set data.path, "
            "or the path of each source"
        )


def below_root(value: Any, root: str | None) -> Any:
    """An option of a source, with `$root` at the start of its paths replaced by that folder.

    Raises ConfigError if a path begins with `$root` and no root is given.

    >>> below_root("$root/coco", "/data")
    '/data/coco'
    """
    if isinstance(value, list):
        return [below_root(each, root) for each in value]
    if not isinstance(value, str) or value.split("/")[0] != ROOT:
        return value
    if root is None:
        raise ConfigError(f"{value} is below a root that is not given: set data.root=FOLDER, or write the whole path")
    return join(root, *value.split("/")[1:])


def _takes_path(name: str) -> bool:
    return name in SOURCES and "path" in inspect.signature(SOURCES[name]).parameters


def read_split(data: DataConfig, split: Split, reads: str) -> Samples | None:
    """The samples of one split, of the kind `reads` ("captions", "vqa", ...); None if the options name no source.

    Raises ConfigError for sources and options that do not exist or fit, DataError for data that cannot be read.
    """
    sources = as_list(getattr(data, split))
    found, weights, named, labels = [], [], [], []
    for each in sources:
        try:
            options = {option: below_root(value, data.root) for option, value in each.items()}
        except ConfigError as error:
            raise ConfigError(f"data.{split}: {error}") from None
        name = options.pop("source", None)
        if not isinstance(name, str):
            raise ConfigError(f"data.{split}.source is missing: name one, such as folder or scenes")
        weights.append(options.pop("weight", 1.0))
        labels.append(options.pop("label", None))
        parts = (name, options.get("path", data.path), options.get("split"))
        named.append(" ".join(str(part) for part in parts if part is not None))
        options.setdefault("task", reads)
        found.append(_read(name, options, data.path, split))
    if not found:
        return None
    _refuse_odd_labels(labels, weights, split)
    samples: Samples
    if labels[0] is not None:
        samples = Labelled(dict(zip(labels, found, strict=True)))
    else:
        samples = found[0] if len(found) == 1 and weights == [1.0] else mix(found, weights)
    if not len(samples):
        raise DataError(f"data.{split} holds no samples ({', '.join(named)}); check its path, split and filters")
    if split != "train" and len(found) > 1 and labels[0] is None:
        _refuse_shared_keys(samples, split, named)
    return samples


def _refuse_odd_labels(labels: Sequence[Any], weights: Sequence[float], split: str) -> None:
    """Raise ConfigError for labels of some sources alone, for repeated ones, and for those of training data."""
    if all(label is None for label in labels):
        return
    if split == "train":
        raise ConfigError("data.train: a label has no effect on training; label the sources of val and test alone")
    if not all(isinstance(label, str) and label for label in labels) or len(set(labels)) < len(labels):
        raise ConfigError(f"data.{split}: the labels {labels} must be different words, one for every source")
    if any(weight != 1 for weight in weights):
        raise ConfigError(f"data.{split}: labelled sources are scored one by one; leave out their weights")


def _refuse_shared_keys(samples: Samples, split: str, named: Sequence[str]) -> None:
    """Raise DataError if samples of several sources share a key, because predictions are stored by key."""
    seen: set[str] = set()
    for sample in readable(samples):
        if sample.key in seen:
            raise DataError(
                f"data.{split}: the key {sample.key!r} appears in several of its sources ({', '.join(named)}), and the "
                "prediction for one would be scored for the other; give each source a label, or rename the images"
            )
        seen.add(sample.key)


def _read(name: str, options: dict[str, Any], path: str | None, split: str) -> Samples:
    try:
        if path is not None and _takes_path(name):
            options.setdefault("path", path)
        return read_source(name, options)
    except ConfigError as error:
        if "needs path" in str(error):
            raise _no_folder(name, split, f"data.{split}.path" if "path" in options else "data.path") from None
        raise ConfigError(f"data.{split}: {error}") from None


def require_paths(data: DataConfig, stage: str) -> None:
    """Raise ConfigError or DataError if a source needs a path that is not given, or that does not exist here.

    It reads nothing, so that the stages of a recipe can be checked before the first one is trained; `stage` is the name
    of this one.
    """
    for split in SPLITS:
        for each in as_list(getattr(data, split)):
            name = str(each.get("source"))
            if not _takes_path(name):
                continue
            path = below_root(each.get("path", data.path), data.root)
            needs_one = inspect.signature(SOURCES[name]).parameters["path"].default is inspect.Parameter.empty
            if path is None and needs_one:
                raise _no_folder(name, split, f"stages.{stage}.data.{split}.path" if "path" in each else "data.path")
            is_pattern = isinstance(path, str) and any(sign in path for sign in "*?[{")  # of shards
            if isinstance(path, str) and not is_url(path) and not is_pattern and not Path(path).exists():
                raise DataError(f"data.{split} of the stage {stage}: {path}: no such file or folder")


def _no_folder(name: str, split: str, key: str) -> ConfigError:
    return ConfigError(f"data.{split}: the source {name!r} needs a folder: add {key}=FOLDER")


def shared_images(splits: Mapping[Split, Samples]) -> list[str]:
    """A line for val and for test where a folder's images are trained on, too."""
    training = _image_files(splits["train"])
    lines = []
    for split in ("val", "test"):
        own = _image_files(splits.get(split, ()))
        if shared := pc.sum(pc.is_in(training, own)).as_py():
            lines.append(
                f"{shared:,} of {len(own):,} images of {split} are also in train, which makes its scores too good"
            )
    return lines


def _image_files(samples: Samples) -> pa.Array:
    parts = samples.sources if isinstance(samples, Mixture) else [samples]
    files = [part.image_files() for part in parts if isinstance(part, Folder)]
    return pa.concat_arrays([pa.array([], pa.large_string()), *files]).unique()


def read_splits(data: DataConfig, reads: str) -> dict[Split, Samples]:
    """The samples of every split that the options name (see `read_split`)."""
    found = {split: read_split(data, split, reads) for split in SPLITS}
    return {split: samples for split, samples in found.items() if samples is not None}
