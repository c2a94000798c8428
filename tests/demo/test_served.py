from pathlib import Path

import pytest

from demo_models import make_models
from evle.demo.served import TAB_OF, bundled, load_all, load_served
from evle.errors import CheckpointError, ConfigError
from evle.pipelines.abilities import PIPELINES
from evle.pipelines.heads import abilities


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vqa", {"ask", "explain"}),
        ("retrieval", {"search", "match", "explain"}),
        ("nlvr2", {"compare", "explain"}),
        ("pretrained", {"match", "locate", "explain"}),
        ("q2a", {"answer", "explain"}),
        ("qa2r", {"reason", "explain"}),
    ],
)
def test_a_model_serves_exactly_what_its_pipelines_load(models, name, expected):
    served = load_served(models[name], name)
    assert set(served.pipelines) == expected
    for ability, pipeline_class in PIPELINES.items():
        ability = TAB_OF.get(ability, ability)
        if ability in expected:
            assert isinstance(served.pipelines[ability], pipeline_class)
        else:
            with pytest.raises(CheckpointError):
                pipeline_class(models[name])


def test_one_head_is_loaded_once(models):
    pipelines = load_served(models["retrieval"], "retrieval").pipelines
    assert pipelines["search"].model is pipelines["match"].model is pipelines["explain"].model


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, ("embed",)),
        ({"model_type": "eve", "architectures": ["EVEModel"]}, ("explain",)),
        ({"model_type": "eve", "architectures": ["EVEForPreTraining"], "objectives": ["mim", "mlm"]}, ("explain",)),
        (
            {"model_type": "vle", "architectures": ["VLEForPreTraining"], "objectives": ["itc", "itm", "pbc"]},
            ("embed", "match", "locate", "explain"),
        ),
        ({"model_type": "vle", "architectures": None}, ("explain",)),
    ],
)
def test_abilities_follow_head_and_objectives(fields, expected):
    assert abilities(fields) == expected


def test_a_folder_without_a_model_is_an_error_before_the_page(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_all([tmp_path / "nothing"])


def test_models_in_the_working_directory_are_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("models/b/model", "models/a", "models/notes"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("models/b/model", "models/a"):
        (tmp_path / name / "config.json").write_text("{}")
    assert bundled() == [tmp_path / "models/a", tmp_path / "models/b"]


def test_without_any_model_the_message_names_commands(monkeypatch):
    monkeypatch.setattr("evle.demo.served.bundled", lambda: [])
    with pytest.raises(ConfigError, match="evle train quickstart"):
        load_all([])
