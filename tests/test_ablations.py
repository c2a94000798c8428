"""Every command of docs/ablations.md: its configuration is accepted, it differs from the recipe as it says, and a dry
run of the same settings on a small model takes its steps, of pre-training and of the fine-tuning that follows."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, FlavaImageCodebook, FlavaImageCodebookConfig

from evle.config import apply_overrides, merge
from evle.run.config import RunConfig, read_recipe
from evle.run.dry_run import rehearse
from evle.run.weights import CONFIGS, read_config, starting_config
from evle.tasks.pretraining import PreTrainingConfig
from micro import MICRO, micro_run

PAGE = Path(__file__).parents[1] / "docs" / "ablations.md"
LINES = [line for line in PAGE.read_text().splitlines() if line.startswith("evle train ")]
COMMANDS = [line for line in LINES if line.startswith("evle train eve-base-pretrain")]
FINE_TUNING = [line for line in LINES if line not in COMMANDS]
SCENES = {"data": {"train": {"source": "scenes", "count": 24, "size": 24}}, "train": {"batch_size": 4}}


def overrides_of(command: str) -> tuple[str, list[str]]:
    words = shlex.split(command)[3:]
    output = words[words.index("-o") + 1] if "-o" in words else ""
    return output, [word for word in words if "=" in word]


def test_every_row_has_a_folder_of_its_own():
    folders = [overrides_of(command)[0] for command in COMMANDS]
    assert len(set(folders)) == len(folders) >= 30


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: overrides_of(command)[0])
def test_the_full_size_of_a_row_is_accepted(command):
    config = read_recipe("eve-base-pretrain", overrides_of(command)[1])
    assert (config.train.steps, config.train.batch_size) == (None, 2048)
    assert isinstance(starting_config(config.model), CONFIGS["eve"])


def teacher(command: str, folder: Path) -> Path:
    """A small image tokenizer, or a small frozen model."""
    torch.manual_seed(0)
    sizes = {"num_groups": 4, "num_blocks_per_group": 1, "hidden_size": 4, "vocab_size": 12}
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 2}
    gives_codes = "mim_target=codes" in command and "mim_codes" not in command
    model = FlavaImageCodebook(FlavaImageCodebookConfig(**sizes)) if gives_codes else Dinov2Model(Dinov2Config(**tower))
    model.eval().save_pretrained(folder)
    return folder


def small_pretraining(command: str, folder: Path) -> tuple[RunConfig, set[str]]:
    """The settings of a command on a model of two layers, of which the last stands for the deep ones; their names."""
    small = {"soft_layers": "[1]", "num_hidden_layers": "2", "num_experts": "4", "mim_codes": "4"}
    changes = ["model.overrides.patch_size=4"]  # 16 patches, of which 90 % can be masked
    for each in overrides_of(command)[1]:
        name, value = each.split("=", 1)
        if value == "TEACHER":
            value = str(teacher(command, folder / "teacher"))
        if name.startswith(("model.overrides.", "task.")):
            changes.append(f"{name}={small.get(name.rpartition('.')[2], value)}")
    tree = micro_run(folder / "run", "pretraining", SCENES).plain()
    names = {change.split("=")[0].removeprefix("model.overrides.") for change in changes}
    return RunConfig.build(apply_overrides(tree, changes), "ablation"), names


def small_fine_tuning(command: str, row: Path, folder: Path) -> RunConfig:
    """The settings of a command of fine-tuning from the pre-trained model in `row`, on small images."""
    words = shlex.split(command)
    changes = [word for word in words if "=" in word and "/" not in word]
    recipe = read_recipe(words[2], changes)
    model = {"preset": None, "init": str(row), "overrides": recipe.model.overrides, "new_heads": recipe.model.new_heads}
    whole = recipe.plain()
    whole["task"] = {**whole["task"], **({"min_count": 1} if "min_count" in whole["task"] else {})}  # few questions
    kept = {"task": whole["task"], "text": whole["text"], "image": {**whole["image"], "size": None}}
    tree = merge(micro_run(folder / "tuned", str(recipe.task["name"]), SCENES).plain(), kept)
    return RunConfig.build({**tree, "model": model}, "fine-tuning")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: overrides_of(command)[0])
def test_a_dry_run_of_a_row(command, tmp_path):
    config, names = small_pretraining(command, tmp_path)
    found = rehearse(config, keep=tmp_path / "row")
    assert not found.missing
    assert any(line.startswith("first losses: ") for line in found.lines)
    model = read_config(tmp_path / "row")
    assert model.num_hidden_layers == MICRO["num_hidden_layers"]
    assert names <= {*model.to_dict(), *(f"task.{name}" for name in PreTrainingConfig.model_fields)}


def of_models(commands: list[str]) -> list[str]:
    """Of the rows that pre-train models of the same settings, from which fine-tuning is the same, the first."""
    firsts: dict[frozenset[str], str] = {}
    for command in commands:
        settings = {each for each in overrides_of(command)[1] if each.startswith(("model.overrides.", "task.mim_"))}
        firsts.setdefault(frozenset(settings), command)
    return list(firsts.values())


@pytest.mark.slow
@pytest.mark.parametrize("command", of_models(COMMANDS), ids=lambda command: overrides_of(command)[0])
def test_a_dry_run_of_each_fine_tuning_of_a_row(command, tmp_path):
    rehearse(small_pretraining(command, tmp_path)[0], keep=tmp_path / "row")
    for tuning in FINE_TUNING:
        found = rehearse(small_fine_tuning(tuning, tmp_path / "row", tmp_path))
        assert not found.missing
        assert any(line.startswith("first losses: ") for line in found.lines), tuning


@pytest.mark.parametrize("command", FINE_TUNING, ids=lambda command: shlex.split(command)[2])
def test_the_full_size_of_a_fine_tuning_is_accepted_and_lacks_only_what_is_to_come(command):
    words = shlex.split(command)
    found = rehearse(read_recipe(words[2], overrides_of(command)[1]))
    assert found.missing
    assert all("corpora/" in line or "runs/" in line for line in found.missing), found.missing


def test_the_fine_tuning_of_table_6_starts_with_new_heads(tmp_path):
    (row,) = [line for line in COMMANDS if overrides_of(line)[0] == "runs/msm-itc"]
    (tuning,) = [line for line in FINE_TUNING if "model.init=runs/msm-itc" in line]
    config, _ = small_pretraining(row, tmp_path)
    rehearse(config, keep=tmp_path / "row")
    lines = rehearse(small_fine_tuning(tuning, tmp_path / "row", tmp_path)).lines
    assert any("tensors are new: contrast (3), matching (2)" in line for line in lines), lines


def test_every_comparison_of_the_paper_has_its_section():
    titles = set(re.findall(r"^## ((?:Table|Figure) \d)", PAGE.read_text(), re.MULTILINE))
    assert titles == {f"Table {number}" for number in (1, 3, 5, 6, 7, 8)} | {f"Figure {number}" for number in (4, 5, 6)}
