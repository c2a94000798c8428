"""Exported graphs give what the model gives, at other sizes of batch and text too."""

import json
from pathlib import Path

import pytest

from commands import call
from evle.errors import ConfigError
from evle.export.graphs import TOLERANCE, export
from evle.models.vle import VLEForITM, VLEForRetrieval
from retrieval_models import save_retrieval_model, save_vqa_model
from vle_folders import save_released

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch"])
@pytest.mark.parametrize("family", ["eve", "vle"])
def test_the_towers_and_the_joint_pass_of_retrieval_are_exported(family, form, tmp_path):
    source = tmp_path / "model"
    save_retrieval_model(source) if family == "eve" else save_released(source, VLEForRetrieval)
    table = export(source, tmp_path / "out", form)
    assert [row[0] for row in table.rows] == ["image", "text", "match"]
    assert all(row[1] <= TOLERANCE and row[2] > 0 for row in table.rows)
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert all((tmp_path / "out" / name).is_file() for name in facts["graphs"])


def test_answers_are_exported_by_the_verb(tmp_path):
    source = save_vqa_model(tmp_path / "vqa")
    output = call("export", source, "-o", tmp_path / "out", "--format", "torch")
    assert "largest difference" in output
    assert (tmp_path / "out" / "model.pt2").is_file()
    assert (tmp_path / "out" / "README.md").is_file()
    assert "is not empty" in call("export", source, "-o", tmp_path / "out", code=2)


def test_what_cannot_be_exported_is_one_line(tmp_path: Path):
    source = save_vqa_model(tmp_path / "vqa")
    with pytest.raises(ConfigError, match="--format onxx: cannot be written; did you mean"):
        export(source, tmp_path / "out", "onxx")  # type: ignore[arg-type]
    other = save_released(tmp_path / "itm", VLEForITM)
    with pytest.raises(ConfigError, match="holds VLEForITM, which is not exported; export a model of: retrieval"):
        export(other, tmp_path / "out", "torch")
