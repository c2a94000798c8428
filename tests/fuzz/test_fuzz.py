"""Damaged files of every kind end in a result or in one line of ours: no traceback of a library, and no hang."""

import io
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from evle.config import dump_yaml
from evle.data.custom.folder import folder
from evle.data.custom.shards import shards
from evle.data.images import open_image
from evle.engine.failures import Diverged
from evle.errors import DataError, EvleError
from evle.inspection.folder_check import check_folder
from evle.models.eve import EVEForRetrieval
from evle.models.loading import load_model
from evle.run.config import read_recipe
from evle.run.evaluation import evaluate
from evle.run.scoring import read_run
from evle.run.stages import train
from evle.search import ImageIndex, build_index
from evle.tasks.retrieval import RetrievalTask
from evle.transforms.text import encode
from micro import caption_samples, micro_run
from mutation import mutate_bytes, mutate_json
from retrieval_models import save_retrieval_model
from tars import caption_members, encoded, write_tar

pytestmark = pytest.mark.slow
SECONDS = 60
"""After this time a case counts as a hang; the slowest takes a second."""


def fuzz(cases: int) -> Callable:
    """A test that is called with `cases` random states, the same ones in each run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    chosen = settings(max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=checks)
    return lambda test: chosen(given(seed=st.integers(0, 2**32))(test))


@contextmanager
def one_line_at_most() -> Iterator[list[str]]:
    """Errors of ours pass, and their messages are in the list; others, and a hang, fail the test."""
    messages: list[str] = []

    def hang(*_: object) -> None:
        raise AssertionError(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield messages
    except EvleError as error:
        messages.append(str(error))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def image_files() -> dict[str, bytes]:
    files = {}
    for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"):
        buffer = io.BytesIO()
        Image.effect_noise((24, 20), 60).convert("RGB").save(buffer, form)
        files[form] = buffer.getvalue()
    return files


IMAGES = image_files()
ROWS = [
    {"image": f"{n}.jpg", "captions": [f"a dog {n}", "x"], "split": ("train", "val", "test")[n % 3], "id": n}
    for n in range(5)
]


def table_files() -> dict[str, bytes]:
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    columns = [[row["image"], f'"a ""dog"" {row["id"]}"', row["split"]] for row in ROWS]
    lines = [["image", "caption", "split"], *columns]
    return {
        "captions.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
        "captions.csv": "\n".join(map(",".join, lines)).encode(),
        "captions.tsv": "\n".join(map("\t".join, lines)).encode(),
        "captions.parquet": parquet.getvalue(),
    }


TABLES = table_files()


@fuzz(400)
def test_images(seed):
    rng = random.Random(seed)
    with one_line_at_most():
        open_image(mutate_bytes(IMAGES[rng.choice(sorted(IMAGES))], rng), max_pixels=4_000_000)


@pytest.mark.parametrize("name", sorted(TABLES))
@fuzz(150)
def test_tables_and_what_the_check_passes_a_run_reads(name, seed, tmp_path):
    rng = random.Random(seed)
    home = tmp_path / str(seed)
    home.mkdir()
    for row in ROWS:
        (home / row["image"]).write_bytes(IMAGES["JPEG"])
    data = TABLES[name]
    if name.endswith("jsonl") and rng.random() < 0.6:
        lines = data.split(b"\n")
        index = rng.randrange(len(lines))
        lines[index] = mutate_json(lines[index], rng)
        data = b"\n".join(lines)
    else:
        data = mutate_bytes(data, rng)
    (home / name).write_bytes(data)
    try:
        checked = None
        with one_line_at_most():
            checked = check_folder(home)
        with one_line_at_most():
            try:
                rows = folder(home)
                for sample in rows:
                    open_image(sample.image)
            except DataError:
                if checked is not None and checked.table:
                    assert not checked.ok, "the check passes what a run refuses"
            else:
                assert checked is not None, "a run reads what the check refuses"
                assert all(caption.strip() for sample in rows for caption in sample.captions)
    finally:
        shutil.rmtree(home)


ROWS_OF = {
    "vqa": [
        {"image": f"{n}.jpg", "question": f"what is {n}?", "answers": ["a", "b"], "split": "train", "id": n}
        for n in range(4)
    ],
    "nlvr2": [
        {"images": ["0.jpg", f"{n}.jpg"], "sentence": f"both are {n}", "label": n % 2 == 0, "set_id": f"s{n}"}
        for n in range(4)
    ],
    "vcr": [
        {
            "image": f"{n}.jpg",
            "objects": [{"label": "person", "box": [0, 0, 9, 9]}, {"label": "dog", "box": [2, 2, 20, 15]}],
            "question": f"Why is [0] near [1] {n}?",
            "answer_choices": ["a [1]", "b", ["c", [0]], "d"],
            "answer_label": n,
            "rationale_choices": ["r", "s", "t", "u"],
            "rationale_label": 3 - n,
        }
        for n in range(4)
    ],
}


@pytest.mark.parametrize("kind", sorted(ROWS_OF))
@fuzz(120)
def test_what_the_check_passes_of_other_kinds_a_run_reads_with_the_same_counts(kind, seed, tmp_path):
    rng = random.Random(seed)
    home = tmp_path / str(seed)
    home.mkdir()
    for number in range(4):
        (home / f"{number}.jpg").write_bytes(IMAGES["JPEG"])
    lines = [json.dumps(row).encode() for row in ROWS_OF[kind]]
    index = rng.randrange(len(lines))
    lines[index] = mutate_json(lines[index], rng)
    (home / "rows.jsonl").write_bytes(b"\n".join(lines))
    try:
        checked = None
        with one_line_at_most():
            checked = check_folder(home, kind)
        with one_line_at_most():
            try:
                samples = folder(home, kind)
            except DataError:
                assert checked is None or not checked.ok, "the check passes what a run refuses"
            else:
                assert checked is not None, "a run reads what the check refuses"
                for sample in samples:
                    for image in sample.images if kind == "nlvr2" else (sample.image,):
                        try:
                            open_image(image)
                        except DataError:
                            assert not checked.ok, "the check passes an image that a run cannot read"
                if checked.ok:
                    assert len(samples) == checked.rows
    finally:
        shutil.rmtree(home)


@fuzz(150)
def test_tars(seed, tmp_path):
    rng = random.Random(seed)
    home = tmp_path / str(seed)
    home.mkdir()
    try:
        write_tar(home / "00000.tar", caption_members(0, 1, 2))
        (home / "00000.tar").write_bytes(mutate_bytes((home / "00000.tar").read_bytes(), rng))
        with one_line_at_most():
            for sample in shards(home / "00000.tar"):
                open_image(sample.image)
    finally:
        shutil.rmtree(home)


YAML = dump_yaml(micro_run(Path("out"), "retrieval").plain()).encode()


@fuzz(300)
def test_recipes(seed, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(mutate_bytes(YAML, random.Random(seed)))
    with one_line_at_most():
        read_recipe(recipe)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_retrieval_model(tmp_path_factory.mktemp("fuzz") / "model")


@contextmanager
def damaged(source: Path, name: str, rng: random.Random) -> Iterator[Path]:
    """A copy of a folder in which one file is changed."""
    copy = source.with_name(f"{source.name}-{os.getpid()}")
    shutil.copytree(source, copy)
    try:
        data = (copy / name).read_bytes()
        (copy / name).write_bytes((mutate_json if name.endswith(".json") else mutate_bytes)(data, rng))
        yield copy
    finally:
        shutil.rmtree(copy)


MODEL_FILES = (
    "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip


@pytest.mark.parametrize("name", MODEL_FILES)
@fuzz(80)
def test_model_folders(name, seed, model):
    with damaged(model, name, random.Random(seed)) as copy, one_line_at_most():
        _, processor = load_model(copy, {"eve": EVEForRetrieval})
        encode(processor.tokenizer, "a red ball \u00e9 \u72ac", 20)


@pytest.fixture(scope="module")
def index(tmp_path_factory, model):
    home = tmp_path_factory.mktemp("index")
    (home / "photos").mkdir()
    for number in range(4):
        (home / "photos" / f"{number}.jpg").write_bytes(encoded(number))
    build_index(model, home / "photos", home / "index", num_workers=0, progress=False)
    return home / "index"


@fuzz(80)
def test_indexes(seed, index, model):
    rng = random.Random(seed)
    files = sorted(str(path.relative_to(index)) for path in index.rglob("*") if path.is_file())
    with damaged(index, rng.choice(files), rng) as copy, one_line_at_most():
        ImageIndex.load(copy, model=model).query("a red ball", k=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("fuzz") / "run"
    samples = {split: caption_samples() for split in ("train", "val", "test")}
    train(micro_run(output, "retrieval", {"train": {"steps": 2}, "task": {"k_test": 4}}), samples=samples)
    return output


UNFINISHED = {"train": {"steps": 4, "save_every": 2, "eval_every": 2}, "task": {"k_test": 0}}
SAMPLES = {split: caption_samples() for split in ("train", "val")}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run that stopped after its third step, with checkpoints of the second."""
    config = micro_run(tmp_path_factory.mktemp("fuzz") / "unfinished", "retrieval", UNFINISHED)
    collate, calls = RetrievalTask.collate_raw, []

    def stops(self, features):
        calls.append(1)
        if len(calls) == 4:
            raise Diverged("the power went out")
        return collate(self, features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RetrievalTask, "collate_raw", stops)
        with pytest.raises(Diverged):
            train(config, samples=SAMPLES)
    return config


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM")
@fuzz(60)
def test_resuming(seed, unfinished):
    """A run with a damaged, empty or missing file resumes, or names the file in one line."""
    rng = random.Random(seed)
    source = Path(unfinished.output)
    files = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    name = rng.choice(files)
    with damaged(source, name, rng) as copy:
        if (kind := rng.randrange(5)) < 2:
            (copy / name).write_bytes(b"") if kind else (copy / name).unlink()
        with one_line_at_most() as messages:
            train(unfinished.model_copy(update={"output": str(copy)}), samples=SAMPLES)
        assert not any("\n" in message for message in messages)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGALRM")
@fuzz(80)
def test_runs(seed, run):
    rng = random.Random(seed)
    files = sorted(
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.suffix in (".json", ".yaml", ".jsonl", ".safetensors") and "report" not in path.name
    )
    with damaged(run, rng.choice(files), rng) as copy, one_line_at_most():
        evaluate(read_run(copy), model=copy, samples=caption_samples(), output=copy / "scores")
