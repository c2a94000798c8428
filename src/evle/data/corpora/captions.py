"""Captions of published corpora, from their official files: Karpathy's splits of COCO and Flickr30K, COCO's own
annotations, and the JSON lists that X-VLM and EVE fine-tune from.

A sample is one image with all its captions, or with `pairs` one of its captions, as in published training lists.
"""

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from evle.data.corpora.official import (
    NAMED,
    OUTSIDE,
    LeftOut,
    combined,
    field,
    find_file,
    listed,
    probe_images,
    refuse_duplicates,
    refuse_outside,
    require_folder,
    require_task,
    required_text,
    same_file,
    text_of,
    wanted_splits,
    whole_number,
    words_of,
)
from evle.data.exclusion import Exclusion, read_exclusion
from evle.data.formats.cells import texts_of
from evle.data.formats.json_arrays import JsonArrays
from evle.data.formats.rows import Row, Rows, table_of
from evle.data.samples import SPLITS, CaptionSample
from evle.errors import DataError

KARPATHY_FILES = {"coco": "dataset_coco.json", "flickr30k": "dataset_flickr30k.json"}
KARPATHY_COUNTS = {
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},
    "flickr30k": {"train": 29_000, "val": 1_014, "test": 1_000},
}
"""Images of each split as published, restval counted as train."""
FLICKR_FOLDER = "flickr30k-images"

_SCHEMA = pa.schema(
    [("image", pa.large_string()), ("captions", pa.large_list(pa.large_string())), ("number", pa.int32())]
)


def karpathy(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str | Sequence[str] | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    pairs: bool = False,
    exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    allow_outside: bool = False,
) -> Rows:
    """Karpathy's splits of COCO (`dataset_coco.json`) or Flickr30K (`dataset_flickr30k.json`).

    `path` is the JSON or its folder. The images are below `images` (by default the JSON's folder): COCO's in train2014
    and val2014, Flickr30K's in flickr30k-images. `split` is train (with restval), val, test, several of them, or None
    for all. An image's captions share its file name as `match_id`. `pairs` yields one sample per caption; `exclude`
    names images to leave out (see `read_exclusion`). Images outside of `images` are refused, unless `allow_outside`.

    `describe()` notes where the number of images differs from the published one. Raises ConfigError for options that
    cannot work, DataError for files that are missing or of another form.
    """
    require_task("karpathy", task)
    wanted = wanted_splits("karpathy", split, SPLITS)
    file = find_file(path, KARPATHY_FILES.values(), "Karpathy's JSON")
    excluded = read_exclusion(exclude)
    arrays = JsonArrays(file, ["images"])
    seen: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    skipped = LeftOut()
    table = table_of(_karpathy_rows(arrays, file, wanted, excluded, seen, left_out, skipped), _SCHEMA)
    root = Path(images) if images is not None else file.parent
    known = next((name for name, usual in KARPATHY_FILES.items() if usual == file.name), "")
    published = KARPATHY_COUNTS.get(known, {})
    notes = [
        f"{seen[name]:,} images of {name}, where {published[name]:,} were published"
        for name in wanted
        if name in published and seen[name] != published[name]
    ]
    facts = {"source": "karpathy", "file": str(file), "split": ", ".join(wanted)}
    facts |= excluded.facts(left_out["excluded"]) | ({"note": "; ".join(notes)} if notes else {})
    print_ = combined(arrays.fingerprint, excluded.fingerprint, wanted, pairs)
    return _captions(table, root, file, facts, print_, pairs, left_out, allow_outside, skipped)


def _karpathy_rows(
    arrays: JsonArrays,
    file: Path,
    wanted: Sequence[str],
    excluded: Exclusion,
    seen: Counter[str],
    left_out: Counter[str],
    skipped: LeftOut,
) -> Iterator[Row]:
    """Rows of the wanted splits. Counts the images of each split in `seen`, and those left out in `left_out`."""
    split_of: dict[int, str] = {}
    for number, element in enumerate(arrays):
        where = f"{file}: image {number}"
        record = element.value
        split = field(record, "split", where)
        split = "train" if split == "restval" else split
        if split not in SPLITS:
            raise DataError(f"{where}: split {split!r} is none of train, restval, val, test; download the file again")
        seen[split] += 1
        name = required_text(record, "filename", where)
        folder = record.get("filepath") or (FLICKR_FOLDER if "flickr30k" in file.name else "")
        image = _in_folder(folder, name)
        if (other := split_of.setdefault(hash(image), split)) != split:
            raise DataError(f"{where}: {image} is in the splits {other} and {split}; download the file again")
        if split not in wanted:
            continue
        coco_id = whole_number(record, "cocoid", where) if record.get("cocoid") is not None else None
        if excluded and excluded.holds(name, coco_id=coco_id):
            left_out["excluded"] += 1
            continue
        given = (field(each, "raw", where) for each in listed(record, "sentences", where))
        yield {"image": image, "captions": _texts(given, where, file, skipped), "number": -1}


def coco_captions(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str | Sequence[str] | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    year: int = 2014,
    pairs: bool = False,
    exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    allow_outside: bool = False,
) -> Rows:
    """COCO's own captions: `annotations/captions_{train,val}2014.json` below `path`, images in train2014 and val2014
    below `images` (by default `path`).

    `split` is train, val, both, or None for both; `year` 2017 reads the files of that year. For pre-training, name
    Karpathy's JSON as `exclude`, as his val and test images come from COCO's val. `pairs` yields one sample per
    caption. Captions of images that the file does not contain are named in `.skipped`.

    Raises ConfigError and DataError as `karpathy` does, also for duplicate ids.
    """
    require_task("coco-captions", task)
    wanted = wanted_splits("coco-captions", split, ("train", "val"))
    base = Path(path) / "annotations" if (Path(path) / "annotations").is_dir() else Path(path)
    files = [_coco_file(base, each, year) for each in wanted]
    excluded = read_exclusion(exclude)
    left_out: Counter[str] = Counter()
    skipped = LeftOut()
    tables, prints = [], []
    for each, file in zip(wanted, files, strict=True):
        table, print_ = _coco_table(file, f"{each}{year}", excluded, left_out, skipped)
        tables.append(table)
        prints.append(print_)
    root = Path(images) if images is not None else Path(path)
    facts = {"source": "coco-captions", "file": ", ".join(map(str, files)), "split": ", ".join(wanted)}
    facts |= excluded.facts(left_out["excluded"])
    print_ = combined(prints, excluded.fingerprint, wanted, pairs)
    return _captions(pa.concat_tables(tables), root, files[0], facts, print_, pairs, left_out, allow_outside, skipped)


def _coco_file(base: Path, split: str, year: int) -> Path:
    """The official file of a split. Raises DataError, naming the other year where its file is there."""
    name = f"captions_{split}{year}.json"
    others = sorted(base.glob(f"captions_{split}20??.json")) if base.is_dir() and not (base / name).is_file() else []
    if others:
        found = others[0].stem[-4:]
        raise DataError(f"{base}: no {name}, but {others[0].name}; set year={found}, or put COCO's {year} files there")
    return find_file(base, [name], "COCO's annotations")


def _coco_table(
    file: Path, folder: str, excluded: Exclusion, left_out: Counter[str], skipped: LeftOut
) -> tuple[pa.Table, str]:
    """The rows of one official file, and the file's fingerprint."""
    arrays = JsonArrays(file, ["images", "annotations"])
    images: dict[str, list[Any]] = {"id": [], "image": []}
    out: set[int] = set()

    def captions() -> Iterator[Row]:
        for number, (array, _, _, record) in enumerate(arrays):
            where = f"{file}: {array} {number}"
            if array == "images":
                name, image_id = required_text(record, "file_name", where), whole_number(record, "id", where)
                if excluded and excluded.holds(name, coco_id=image_id):
                    out.add(image_id)
                images["id"].append(image_id)
                images["image"].append(_in_folder(folder, name))
            else:
                yield {
                    "image_id": whole_number(record, "image_id", where),
                    "id": whole_number(record, "id", where),
                    "caption": text_of(field(record, "caption", where), where),
                }

    schema = pa.schema([("image_id", pa.int64()), ("id", pa.int64()), ("caption", pa.large_string())])
    annotations = table_of(captions(), schema)
    refuse_duplicates(images["id"], file, "image id")
    refuse_duplicates(annotations.column("id").to_numpy(), file, "annotation id")
    known = pc.is_in(annotations.column("image_id"), value_set=pa.array(images["id"], pa.int64()))
    orphans = annotations.filter(pc.invert(known))
    lines = (
        f"{file}: caption {row['id']} belongs to image {row['image_id']}, which the file does not contain"
        for row in orphans.slice(0, NAMED).to_pylist()
    )
    skipped.add(file, "captions of images that the file does not contain", lines, len(orphans))
    grouped = annotations.group_by("image_id", use_threads=False).aggregate([("caption", "list")])
    indices = pc.index_in(pa.array(images["id"], pa.int64()), value_set=grouped.column("image_id"))
    texts = grouped.column("caption_list").take(indices)
    left_out["excluded"] += len(out)
    rows = (
        {"image": name, "captions": _texts(each.as_py() or [], f"{file}: {name}", file, skipped), "number": -1}
        for image_id, name, each in zip(images["id"], images["image"], texts)
        if image_id not in out
    )
    return table_of(rows, _SCHEMA), arrays.fingerprint


def xvlm(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str | None = None,
    *,
    files: str | Sequence[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    pairs: bool = False,
    exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    allow_outside: bool = False,
) -> Rows:
    """The retrieval lists that X-VLM, ALBEF and EVE fine-tune from: `[{"image", "caption", "image_id"}]` for training,
    `[{"image", "caption": [...]}]` for val and test.

    `path` is a JSON file, or a folder of them, of which `files` names one or more; by default the one whose name ends
    in `split` is read, such as coco_train.json for train. Entries of one image, under whatever spelling of its path,
    become one sample, or with `pairs` one sample per caption. Image names are relative to `images`, by default the
    JSON's folder.

    Raises ConfigError and DataError as `karpathy` does.
    """
    require_task("xvlm", task)
    excluded = read_exclusion(exclude)
    found = xvlm_files(Path(path), split, [files] if isinstance(files, str) else files)
    left_out: Counter[str] = Counter()
    prints: list[str] = []
    schema = pa.schema([(name, pa.large_string()) for name in ("file", "image", "caption")])
    entries = table_of(_xvlm_rows(found, excluded, left_out, prints), schema)
    grouped = entries.group_by("file", use_threads=False).aggregate([("image", "first"), ("caption", "list")])
    skipped = LeftOut()
    rows = (
        {"image": image, "captions": _texts(captions.as_py(), f"{found[0]}: {image}", found[0], skipped), "number": -1}
        for image, captions in zip(grouped.column("image_first").to_pylist(), grouped.column("caption_list"))
    )
    root = Path(images) if images is not None else found[0].parent
    facts = {"source": "xvlm", "file": ", ".join(map(str, found)), **excluded.facts(left_out["excluded"])}
    print_ = combined(prints, excluded.fingerprint, pairs)
    table = table_of(rows, _SCHEMA)
    return _captions(table, root, found[0], facts, print_, pairs, left_out, allow_outside, skipped)


def xvlm_files(path: Path, split: str | None, files: Sequence[str] | None) -> list[Path]:
    """The lists that `files` names in `path`, or the one whose name ends in `split`. Raises DataError."""
    if files is not None:
        return [find_file(path / name, [], "X-VLM's JSON") for name in files]
    if path.is_file():
        return [path]
    there = sorted(file.name for file in path.glob("*.json"))
    names = [name for name in there if name.endswith(f"{split or ''}.json")]
    if path.is_dir() and len(names) != 1:
        what = f"{len(names)} lists" if names else "no list"
        raise DataError(
            f"{path}: {what} *{split or ''}.json among {', '.join(there) or 'no JSON files'}; set files=[...] to those "
            "to read"
        )
    return [find_file(path, names, "X-VLM's JSON")]


def _xvlm_rows(files: Sequence[Path], excluded: Exclusion, left_out: Counter[str], prints: list[str]) -> Iterator[Row]:
    """One row per caption. Counts the images that are left out."""
    out: set[str] = set()
    for file in files:
        arrays = JsonArrays(file)
        for number, element in enumerate(arrays):
            where = f"{file}: entry {number}"
            image = required_text(element.value, "image", where)
            if excluded and excluded.holds(image):
                out.add(image)
                continue
            try:
                given = field(element.value, "caption", where)
                captions = texts_of(given)
                if isinstance(given, list):  # what says nothing is counted with its image
                    captions = [text for each in given for text in texts_of([each]) or [""]]
            except TypeError as error:
                raise DataError(f"{where}: caption: {error}; write a text or a list of texts") from None
            for caption in captions or [""]:
                yield {"file": same_file(image), "image": image, "caption": caption}
        prints.append(arrays.fingerprint)
    left_out["excluded"] += len(out)


def _captions(
    table: pa.Table,
    root: Path,
    file: Path,
    facts: dict[str, Any],
    fingerprint: str,
    pairs: bool,
    left_out: Counter[str],
    allow_outside: bool,
    skipped: LeftOut,
) -> Rows:
    """The samples of a table of images with captions. Raises DataError where the images are not there."""
    lengths = pc.list_value_length(table.column("captions"))
    silent = table.filter(pc.equal(lengths, 0)).column("image").to_pylist()
    skipped.add(file, "images without a caption", (f"{file}: no caption for {name}" for name in silent), len(silent))
    table = table.filter(pc.greater(lengths, 0))
    if not table.num_rows:
        why = f"; {left_out['excluded']:,} were excluded" if left_out["excluded"] else ""
        split = facts.get("split", "of the list")
        raise DataError(f"{file}: no image with a caption in split {split}{why}; check split and exclude")
    refuse_duplicates(table.column("image").to_numpy(zero_copy_only=False), file, "image")
    facts["images"] = table.num_rows
    facts["captions"] = pc.sum(pc.list_value_length(table.column("captions"))).as_py()
    make = partial(_sample, root=_image_root(table, root, file, allow_outside))
    rows = Rows(
        _one_caption_each(table) if pairs else table,
        make,
        fingerprint=fingerprint,
        facts=facts,
        skipped=skipped.lines,
        num_skipped=skipped.count,
    )
    probe_images(rows, file)
    return rows


def _image_root(table: pa.Table, root: Path, file: Path, allow_outside: bool) -> dict[str, str]:
    """The folder on disk of each folder that the table names: below `root`, or `root` itself."""
    require_folder(root, f"the images of {file.name}")
    firsts: dict[str, str] = {}
    for name in table.column("image").to_pylist():
        folder, _, base = name.rpartition("/")
        firsts.setdefault(folder, base)
    roots = {}
    for folder, base in firsts.items():
        if not allow_outside:
            refuse_outside(posixpath.join(folder, base), root, str(file), OUTSIDE)
        flat = folder and not (root / folder).is_dir() and (root / base).is_file()
        if not flat:
            require_folder(root / folder, f"the images of {file.name}")
        roots[folder] = str(root if flat else root / folder)
    return roots


def _one_caption_each(table: pa.Table) -> pa.Table:
    """One row per caption."""
    captions = table.column("captions").combine_chunks()
    parents = pc.list_parent_indices(captions)
    texts = pc.list_flatten(captions)
    offsets = captions.offsets.to_numpy()
    numbers = pa.array(range(len(texts)), pa.int64()).to_numpy() - offsets[parents.to_numpy()]
    single = pa.LargeListArray.from_arrays(pa.array(range(len(texts) + 1), pa.int64()), texts)
    return pa.Table.from_arrays(
        [table.column("image").take(parents), single, pa.array(numbers, pa.int32())], schema=_SCHEMA
    )


def _in_folder(folder: str, name: str) -> str:
    """The relative path of an image in a folder, which its name may begin with, as some converted files have it."""
    image = same_file(name)
    return image if not folder or image.startswith(f"{same_file(folder)}/") else same_file(f"{folder}/{image}")


def _texts(captions: Iterable[Any], where: str, file: Path, skipped: LeftOut) -> list[str]:
    """An image's captions. Those without words go to `skipped`, unless no other is left, as then the image does."""
    given = [words_of(each, where) for each in captions]
    if any(given):
        lines = [f"{where}: no words in caption {number}" for number, text in enumerate(given, 1) if not text]
        skipped.add(file, "captions without words", lines, len(lines))
    return [text for text in given if text]


def _sample(row: Row, root: dict[str, str]) -> CaptionSample:
    folder, _, base = row["image"].rpartition("/")
    key = row["image"] if row["number"] < 0 else f"{row['image']}#{row['number']}"
    return CaptionSample(key, os.path.join(root[folder], base), tuple(row["captions"]), match_id=row["image"])
