"""Exported models are asked without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from commands import call
from evle.cli.showing import AFTER_TRAINING, exported_use
from evle.errors import CheckpointError, ConfigError, DataError, SampleError
from evle.exported.folder import ExportedModel, checksum_of_facts, is_exported
from evle.exported.pipelines import ClassifyPipeline, EmbedPipeline, MatchPipeline, VQAPipeline
from evle.files import checksum
from evle.search import ImageIndex
from exported_models import COLOURS, save_exported

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TEXTS = [f"A {colour} ball!" for colour in COLOURS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_exported(tmp_path_factory.mktemp("exported") / "photos")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for colour in COLOURS:
        Image.new("RGB", (20, 20), colour).save(folder / f"{colour}.png")
    return folder


def test_images_and_texts_of_one_colour_are_alike(model, photos):
    embed = EmbedPipeline(model, batch_size=2)
    similarity = embed.texts(TEXTS) @ embed.images([photos / f"{colour}.png" for colour in COLOURS]).T
    np.testing.assert_allclose(similarity, np.eye(3), atol=0.01)
    assert embed.texts([]).shape == (0, embed.dimension) == embed.images([]).shape


def test_an_image_that_cannot_be_read_is_named_and_left_out(model, photos):
    embed = EmbedPipeline(model, batch_size=2)
    (batch,) = embed.image_batches([photos / "gone.png", photos / "red.png"])
    assert batch.rows == [1]
    assert "gone.png: no such file" in str(batch.failures[0])
    with pytest.raises(SampleError, match="no such file"):
        embed.images([photos / "gone.png"])


def test_labels_are_scored_and_sorted(model, photos):
    (row,) = ClassifyPipeline(model)(photos / "blue.png", COLOURS, template="a {} ball")
    assert row[0]["label"] == "blue"
    assert sum(each["score"] for each in row) == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"has no \{\}"):
        ClassifyPipeline(model)(photos / "blue.png", COLOURS, template="ball")


def test_labels_behind_the_end_of_a_text_are_refused(model, photos):
    classify = ClassifyPipeline(model)
    with pytest.raises(ConfigError, match="are read as one text; their texts are cut after 16 tokens"):
        classify(photos / "blue.png", COLOURS, template="ball " * 40 + "{}")
    with pytest.raises(ConfigError, match="are read as one text; leave one of them out"):
        classify(photos / "blue.png", ["red", "RED"])


def test_an_array_is_an_image_only_as_it_was_read(model, photos):
    embed = EmbedPipeline(model)
    pixels = embed.image_reader.read(photos / "red.png")
    np.testing.assert_array_equal(embed.images([pixels]), embed.images(photos / "red.png"))
    for wrong in (pixels.astype(np.float32), pixels.transpose(1, 2, 0)):
        with pytest.raises(SampleError, match=r"is no image that was read here.*; give a PIL image"):
            embed.images([wrong])
    data = (photos / "red.png").read_bytes()
    np.testing.assert_array_equal(embed.images(bytearray(data)), embed.images(data))
    with pytest.raises(DataError, match="text 1 is None, which is no text"):
        embed.texts(["a", None])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("image.mean", None, "lacks image.mean"),
        ("image.mean", 0.5, "image.mean is '0.5'"),
        ("text.max_length", "x", "text.max_length is 'x'"),
        ("runs.image.inputs", ["pixels"], "runs.image.inputs is"),
        ("runs.image.output", "logits", "runs.image.output is 'logits'"),
    ],
)
def test_an_odd_field_of_the_export_is_one_line(model, photos, tmp_path, field, value, words):
    folder = tmp_path / "odd"
    shutil.copytree(model, folder)
    facts = json.loads((folder / "export.json").read_text())
    *outer, last = field.split(".")
    part = facts
    for name in outer:
        part = part[name]
    if value is None:
        del part[last]
    else:
        part[last] = value
    (folder / "export.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=f"{words}.*; export the model again"):
        EmbedPipeline(folder).images(photos / "red.png")


@pytest.mark.parametrize(("field", "name", "value"), [("image", "side", 12), ("text", "max_length", 9)])
def test_a_field_that_was_changed_since_the_export_is_refused(photos, tmp_path, field, name, value):
    folder = save_exported(tmp_path / "exported")  # its graph takes images of any size: nothing else would notice
    facts = json.loads((folder / "export.json").read_text())
    facts["checksums"] = {"export.json": checksum_of_facts(facts)}
    (folder / "export.json").write_text(json.dumps(dict(reversed(facts.items())), indent=2))
    assert EmbedPipeline(folder).images(photos / "red.png").shape == (1, 3)
    facts[field][name] = value
    (folder / "export.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"export\.json: changed or damaged, .*; copy the folder again"):
        EmbedPipeline(folder)


def test_pairs_are_matched_and_failures_leave_nan(model, photos):
    match = MatchPipeline(model, batch_size=2)
    scores = [row["score"] for row in match(photos / "red.png", TEXTS)]
    assert np.argmax(scores) == 0
    margins, failures = match.margins([photos / "gone.png", photos / "green.png"], "a green ball")
    assert list(failures) == [0]
    assert np.isnan(margins[0])
    assert margins[1] == pytest.approx(2, abs=0.01)


def test_a_folder_is_indexed_searched_and_ranked_again(model, photos, tmp_path):
    index = ImageIndex.build(model, photos, tmp_path / "index", progress=False)
    (hit,) = index.query("a green ball", k=1)
    assert hit.key == "green.png"
    hits = ImageIndex.load(tmp_path / "index").query("a blue ball", k=3, rerank=3)
    assert hits[0].key == "blue.png"
    assert hits[0].match > hits[1].match


@pytest.mark.parametrize("missing", ["torch", "torch, transformers"])
def test_no_torch_is_imported(model, photos, tmp_path, missing):
    """With the modules blocked, every way to ask still works."""
    code = f"""
import sys
for name in {missing!r}.split(", "):
    sys.modules[name] = None  # an import of it fails
from evle.exported.pipelines import ClassifyPipeline, EmbedPipeline, MatchPipeline
from evle.search import ImageIndex
photos = {str(photos)!r}
EmbedPipeline({str(model)!r}).texts(["a red ball"]); MatchPipeline({str(model)!r})(photos + "/red.png", "a ball")
index = ImageIndex.build({str(model)!r}, photos, {str(tmp_path / "index")!r}, progress=False)
print(index.query("a red ball", k=1, rerank=3)[0].key)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "red.png", done.stderr


def test_the_face_has_these_pipelines_where_torch_is_missing(model):
    code = f"""
import sys
sys.modules["torch"] = None
import evle
print(evle.EmbedPipeline({str(model)!r}).texts("a red ball").shape, evle.EmbedPipeline.__module__)
from evle import ExplainPipeline
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["(1,", "3)", "evle.exported.pipelines"], done.stderr
    assert "ImportError: evle.ExplainPipeline needs torch, which is not installed" in done.stderr


def test_the_verbs_import_no_torch(model, photos, tmp_path):
    for arguments in (
        ["index", photos, "-o", tmp_path / "index", "--model", model],
        ["search", tmp_path / "index", "a red ball", "--rerank", "2", "--html", tmp_path / "found.html"],
        ["match", model, photos / "red.png", *TEXTS],
        ["classify", model, photos / "red.png", *COLOURS],
        ["embed", model, "a red ball"],
    ):
        done = called_without_torch(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert "red" in done.stdout or "embedding" in done.stdout or "3 images" in done.stdout


def called_without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.modules['torch'] = None; from evle.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_verb_that_needs_torch_is_one_line_without_it(model, photos, tmp_path):
    done = called_without_torch("explain", model, photos / "red.png", "a red ball", "-o", tmp_path / "map.html")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "torch is not installed, and this command needs it here; run: pip install evle" in done.stderr


@pytest.mark.parametrize(
    ("task", "graphs", "verb"),
    [
        ("retrieval", ["image", "text", "match"], "index"),
        ("retrieval", ["match", "locate", "words"], "match"),
        ("retrieval", ["locate"], "locate"),
        ("vqa", ["answer"], "ask"),
        ("nlvr2", ["compare"], "compare"),
    ],
)
def test_the_next_command_is_one_that_the_graphs_can_answer(task, graphs, verb):
    assert AFTER_TRAINING[exported_use(task, graphs)][0] == verb


def test_what_is_missing_or_damaged_is_one_line(model, tmp_path):
    assert is_exported(model)
    with pytest.raises(CheckpointError, match="has no graph 'answer'; it has: image, text, match"):
        VQAPipeline(model)
    with pytest.raises(CheckpointError, match="not an exported model"):
        EmbedPipeline(tmp_path)
    other = save_exported(tmp_path / "torch", format="torch")
    with pytest.raises(CheckpointError, match=r"holds programs of torch\.export"):
        EmbedPipeline(other)
    damaged = save_exported(tmp_path / "damaged")
    (damaged / "text.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"text\.onnx: onnxruntime cannot open it"):
        EmbedPipeline(damaged).texts("a")
    (damaged / "text.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"text\.onnx: no such file"):
        ExportedModel(damaged).run("text", {"input_ids": np.ones((1, 2)), "attention_mask": np.ones((1, 2))})
    checksums = {"image.onnx": checksum(damaged / "image.onnx"), "tokenizer.json": checksum(damaged / "tokenizer.json")}
    known = save_exported(tmp_path / "known", checksums=checksums)
    pixels = np.ones((1, 3, 8, 8), np.float32)
    assert ExportedModel(known).run("image", {"pixel_values": pixels}).shape == (1, 3)
    for name in checksums:
        good = (known / name).read_bytes()
        (known / name).write_bytes(good[:-1] + b" ")
        with pytest.raises(CheckpointError, match=rf"{name}: changed or damaged, .* copy the folder again"):
            ExportedModel(known).run("image", {"pixel_values": pixels})
        (known / name).write_bytes(good)
    (damaged / "export.json").write_text(json.dumps({"format": "onnx"}))
    with pytest.raises(CheckpointError, match="lacks heads, image, runs, text; export the model again"):
        EmbedPipeline(damaged)
    assert "has no graph 'answer'" in call("ask", model, "a.png", "what?", code=2)
