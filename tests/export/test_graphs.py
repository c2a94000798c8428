"""Exported graphs give what the model gives, at other sizes of batch, text and image, and run without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evle
from commands import call
from dual_models import save_dual
from eve_models import build
from evle.errors import CheckpointError, ConfigError
from evle.export.graphs import TOLERANCE, export
from evle.exported import pipelines as exported
from evle.exported.reading import ImageReader
from evle.models.eve import EVEConfig, EVEForNLVR2, EVEForPreTraining, EVEForVQA, EVEModel
from evle.models.vle import (
    VLEForITM,
    VLEForMLM,
    VLEForNLVR2,
    VLEForPBC,
    VLEForPreTraining,
    VLEForRetrieval,
    VLEForVCRQ2A,
    VLEForVQA,
)
from retrieval_models import SIZES, processor, save_retrieval_model, save_vqa_model
from vle_folders import plain_image, save_released

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
COLOURS = ("red", "blue", "green")


def save_eve(folder: Path, head: type, **fields: object) -> Path:
    torch.manual_seed(0)
    reader = processor()
    head(EVEConfig(**{**SIZES, **fields}, vocab_size=len(reader.tokenizer))).save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


VLE = {
    "retrieval": (VLEForRetrieval, {}),
    "vqa": (VLEForVQA, {"id2label": {0: "red", 1: "blue"}}),
    "itm": (VLEForITM, {}),
    "mlm": (VLEForMLM, {}),
    "pbc": (VLEForPBC, {}),
    "nlvr2": (VLEForNLVR2, {}),
    "vcr": (VLEForVCRQ2A, {"num_token_types": 6}),
    "pretraining": (VLEForPreTraining, {"objectives": ("mlm", "itm", "pbc", "itc")}),
}
EVE = {
    "vqa with a slot": (EVEForVQA, {"vqa_slot": True, "id2label": {0: "red", 1: "blue"}}),
    "nlvr2": (EVEForNLVR2, {"nlvr2_head": "bi-attention"}),
    "pretraining": (EVEForPreTraining, {"objectives": ("mlm", "itc", "itm")}),
    "stem": (EVEForVQA, {"stem_channels": (4, 8, 8)}),
}
GRAPHS = {
    "retrieval": ["image", "text", "match"],
    "itm": ["match"],
    "pretraining": ["image", "text", "match", "words"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVE)
def test_every_head_of_eve_is_exported_with_free_sizes(name, tmp_path):
    head, fields = EVE[name]
    table = export(save_eve(tmp_path / "model", head, **fields), tmp_path / "out")
    assert [row[0] for row in table.rows] == GRAPHS.get(name, ["model"])
    assert all(row[1] <= TOLERANCE and row[2] > 0 and row[4] in ("free", "-") for row in table.rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", VLE)
def test_every_head_of_vle_is_exported(name, tmp_path):
    head, fields = VLE[name]
    table = export(save_released(tmp_path / "model", head, **fields), tmp_path / "out")
    wanted = ["image", "text", "match", "locate", "words"] if name == "pretraining" else GRAPHS.get(name, ["model"])
    assert [row[0] for row in table.rows] == wanted
    assert all(row[1] <= TOLERANCE for row in table.rows)
    assert all(row[4] == ("fixed" if name == "vcr" else "-" if row[0] == "text" else "free") for row in table.rows)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 22])
def test_the_opset_can_be_chosen(opset, tmp_path):
    import onnx

    export(save_vqa_model(tmp_path / "vqa"), tmp_path / "out", opset=opset)
    versions = {each.domain: each.version for each in onnx.load(tmp_path / "out/model.onnx").opset_import}
    assert versions[""] == opset


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory) -> tuple[Path, Path]:
    """A small EVE for retrieval, and what `evle export` makes of it."""
    base = tmp_path_factory.mktemp("retrieval")
    save_retrieval_model(base / "model")
    call("export", base / "model", "-o", base / "out")
    for colour in COLOURS:
        Image.new("RGB", (40, 30), colour).save(base / f"{colour}.png")
    return base / "model", base / "out"


@pytest.mark.slow
def test_the_pipelines_of_the_folder_agree_with_those_of_the_model(retrieval):
    model, out = retrieval
    texts = ["A red ball!", "what colour", "x " * 60]
    images = [out.parent / f"{colour}.png" for colour in COLOURS]
    for ours, theirs in (
        (evle.EmbedPipeline(model).texts(texts), exported.EmbedPipeline(out).texts(texts)),
        (evle.EmbedPipeline(model).images(images), exported.EmbedPipeline(out).images(images)),
        (evle.EmbedPipeline(model).images(images), evle.EmbedPipeline(out).images(images).numpy()),
        (evle.MatchPipeline(model).margins(images, texts)[0], exported.MatchPipeline(out).margins(images, texts)[0]),
        (evle.MatchPipeline(model).margins(images, texts)[0], evle.MatchPipeline(out).margins(images, texts)[0]),
    ):
        np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), atol=1e-3)
    rows = evle.ClassifyPipeline(model)(images[0], COLOURS), exported.ClassifyPipeline(out)(images[0], COLOURS)
    assert [each["label"] for each in rows[0][0]] == [each["label"] for each in rows[1][0]]
    assert rows[0][0][0]["score"] == pytest.approx(rows[1][0][0]["score"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image.onnx", "tokenizer.json"])
def test_one_flipped_bit_of_an_exported_file_is_named(retrieval, tmp_path, name):
    out = Path(shutil.copytree(retrieval[1], tmp_path / "copy"))
    data = bytearray((out / name).read_bytes())
    data[len(data) // 2] ^= 1
    (out / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name}: changed or damaged, or not of this export"):
        exported.EmbedPipeline(out).images([plain_image()])


@pytest.mark.slow
def test_an_index_of_the_model_is_searched_with_the_folder_without_torch(retrieval, tmp_path):
    model, out = retrieval
    call("index", out.parent, "-o", tmp_path / "index", "--model", model)
    key, found = searched_without_torch(tmp_path / "index", out, out.parent / "red.png", rerank=3)
    assert (key, found) == ("red.png", "3")


def searched_without_torch(index: Path, out: Path, image: Path, rerank: int = 0) -> list[str]:
    """The image that is most like `image`, and the number of images for a text."""
    code = f"""
import sys
sys.modules["torch"] = None
from evle.search import ImageIndex
index = ImageIndex.load({str(index)!r}, model={str(out)!r})
print(index.query(image={str(image)!r}, k=1)[0].key, len(index.query("red", rerank={rerank})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_dual_encoder_of_transformers_is_exported_and_searched_without_torch(family, tmp_path):
    model, out, photos = save_dual(tmp_path / family, family), tmp_path / "out", tmp_path / "photos"
    photos.mkdir()
    images = [photos / f"{colour}.png" for colour in COLOURS]
    for image, colour in zip(images, COLOURS, strict=True):
        Image.new("RGB", (32, 32), colour).save(image)
    table = export(model, out)
    assert [row[0] for row in table.rows] == ["image", "text"]
    assert all(row[1] <= TOLERANCE for row in table.rows)
    texts = ["A red ball!", "what colour", "x " * 60]
    embed = evle.EmbedPipeline(model)
    for theirs in (exported.EmbedPipeline(out), evle.EmbedPipeline(out)):
        np.testing.assert_allclose(np.asarray(theirs.texts(texts)), embed.texts(texts).numpy(), atol=1e-4)
        np.testing.assert_allclose(np.asarray(theirs.images(images)), embed.images(images).numpy(), atol=1e-4)
    rows = [
        pipeline(images[0], COLOURS)[0] for pipeline in (evle.ClassifyPipeline(model), exported.ClassifyPipeline(out))
    ]
    assert [each["label"] for each in rows[0]] == [each["label"] for each in rows[1]]
    assert rows[0][0]["score"] == pytest.approx(rows[1][0]["score"], abs=1e-4)
    call("index", photos, "-o", tmp_path / "index", "--model", model)
    assert searched_without_torch(tmp_path / "index", out, images[1]) == ["blue.png", "3"]


@pytest.mark.slow
def test_the_weights_of_products_are_kept_in_8_bits(tmp_path):
    source = save_released(tmp_path / "vqa", VLEForVQA, id2label={0: "red", 1: "blue"})
    small = export(source, tmp_path / "small", int8=True).rows[0]
    large = export(source, tmp_path / "large").rows[0]
    assert small[3] < large[3]
    assert small[1] <= TOLERANCE < small[5] < 1
    ours, theirs = evle.VQAPipeline(source), exported.VQAPipeline(tmp_path / "small")
    score = ours(plain_image(), "what?")[0]["score"]
    assert theirs(plain_image(), "what?")[0]["score"] == pytest.approx(score, abs=0.1)


@pytest.mark.slow
def test_the_change_of_scores_is_printed(tmp_path):
    rows = []
    for colour in COLOURS:
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{colour}.png")
        rows.append({"image": f"{colour}.png", "question": "what colour", "answer": colour, "split": "test"})
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = save_vqa_model(tmp_path / "vqa")
    output = call("export", source, "-o", tmp_path / "out", "--int8", "--data", tmp_path / "questions.jsonl")
    assert "| accuracy |" in output
    assert "3 samples of" in output
    assert f"next: evle ask {tmp_path / 'out'}" in output
    file = tmp_path / "out" / "processor_config.json"
    file.write_text(file.read_text() + "\n")
    assert "processor_config.json: changed or damaged" in call(
        "ask", tmp_path / "out", tmp_path / "red.png", "what?", code=2
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["eve", "vle"])
def test_programs_of_torch_are_written(family, tmp_path):
    source = tmp_path / "model"
    save_vqa_model(source) if family == "eve" else save_released(source, VLEForVQA, id2label={0: "red", 1: "blue"})
    output = call("export", source, "-o", tmp_path / "out", "--format", "torch")
    assert "largest difference" in output
    assert (tmp_path / "out" / "README.md").is_file()
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["graphs"] == ["model.pt2"]
    assert "is not empty" in call("export", source, "-o", tmp_path / "out", code=2)


def test_dense_experts_compute_what_the_others_do():
    model = build(EVEForVQA, num_labels=3)
    inputs = {"pixel_values": torch.randn(3, 3, 16, 16), "input_ids": torch.randint(5, 50, (3, 7))}
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    with torch.no_grad():
        expected = model(**inputs, attention_mask=mask).logits
        model.set_experts_implementation("dense")
        torch.testing.assert_close(model(**inputs, attention_mask=mask).logits, expected)


def test_what_cannot_be_exported_is_one_line(tmp_path: Path):
    source, out = save_vqa_model(tmp_path / "vqa"), tmp_path / "out"
    with pytest.raises(ConfigError, match="--format onxx: cannot be written; did you mean"):
        export(source, out, "onxx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--opset 11: too old; choose one from 18 to 22"):
        export(source, out, opset=11)
    with pytest.raises(ConfigError, match="--opset 99: not known"):
        export(source, out, opset=99)
    with pytest.raises(ConfigError, match="--int8 is for ONNX files; leave out --format torch"):
        export(source, out, "torch", int8=True)
    with pytest.raises(CheckpointError, match="holds EVEModel, which is not exported; export one of: EVEForRetrieval"):
        export(save_eve(tmp_path / "bare", EVEModel), out)
    with pytest.raises(CheckpointError, match="pre-trained by mim, which leaves no head to export"):
        export(save_eve(tmp_path / "mim", EVEForPreTraining, objectives=("mim",), patch_size=8), out)
    with pytest.raises(ConfigError, match="routes with a capacity"):
        export(save_eve(tmp_path / "capacity", EVEForVQA, capacity_factor=1.0), out)
    assert not out.exists()
    assert "--data and --split are for --int8" in call("export", source, "-o", out, "--data", tmp_path, code=2)


def test_a_processor_with_other_pixels_is_refused(tmp_path: Path, monkeypatch):
    source = save_vqa_model(tmp_path / "vqa")
    monkeypatch.setattr(ImageReader, "read", lambda self, source: np.zeros((3, 16, 16), np.uint8))
    with pytest.raises(CheckpointError, match="prepares images in another way"):
        export(source, tmp_path / "out")
