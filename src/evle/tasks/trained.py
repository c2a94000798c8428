"""How the run that trained a model prepared its texts, and other facts in its folder."""

from pathlib import Path
from typing import Any

from evle.config import load_yaml
from evle.errors import CheckpointError
from evle.files import read_json
from evle.models.dual import DUAL_ENCODERS
from evle.models.folders import model_folder, read_fields
from evle.models.loading import ALL_PROCESSORS
from evle.tasks.task import TextConfig

RUN_FACTS = "run.json"
"""The file in a model folder with facts about the run that trained it, for folders outside of the run's folder."""
AS_IT_IS = TextConfig(clean=False, max_length=512)
TEXTS = {"eve": TextConfig(), "vle": AS_IT_IS, **dict.fromkeys(DUAL_ENCODERS, AS_IT_IS)}
"""How a family's released models prepare texts, for models without a run: VLE reads them unchanged."""


def family_text_options(family: str) -> TextConfig:
    """How a family's texts are prepared if no run documents it."""
    return TEXTS.get(family, TextConfig())


def run_settings(path: str | Path) -> dict[str, Any]:
    """The configuration of the run that trained the model in `path`, from config.yaml in the run's folder, or from
    run.json in a model folder that has been moved. Empty for a model without a run."""
    folder = model_folder(path).absolute()
    file = folder.parent / "config.yaml"
    settings = load_yaml(file) if _settings_file(folder) == file else {}
    if not isinstance(settings.get("task"), dict) and (folder / RUN_FACTS).is_file():
        settings = read_json(folder / RUN_FACTS, kind=dict, error=CheckpointError).get("config")
    return settings if isinstance(settings, dict) and isinstance(settings.get("task"), dict) else {}


def _settings_file(folder: Path) -> Path:
    """The file that holds the configuration of the run that trained the model in a folder."""
    folder = folder.absolute()
    file = folder.parent / "config.yaml"
    return file if folder.name == "model" and file.is_file() else folder / RUN_FACTS


def text_options(path: str | Path) -> TextConfig:
    """How the run that trained the model in `path` prepared its texts, or the family's default without a run."""
    settings, folder = run_settings(path), model_folder(path)
    if not settings:
        return family_text_options(read_fields(folder, ALL_PROCESSORS)["model_type"])
    return TextConfig.build(settings.get("text") or {}, f"{_settings_file(folder)}: text")
