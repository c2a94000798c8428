"""Every command of docs/ablations.md: its configuration is accepted, it differs from the recipe as it says, and a small
model of the same settings takes a step."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, FlavaImageCodebook, FlavaImageCodebookConfig

from evle.config import apply_overrides
from evle.data.samples import CaptionSample
from evle.run.config import RunConfig, read_recipe
from evle.run.prepare import prepare
from evle.run.weights import CONFIGS, starting_config
from evle.tasks.pretraining import PreTrainingConfig
from micro import MICRO, caption_samples, micro_run

PAGE = Path(__file__).parents[1] / "docs" / "ablations.md"
COMMANDS = [line for line in PAGE.read_text().splitlines() if line.startswith("evle train eve-base-pretrain")]
CAPTIONS = [CaptionSample(each.key, each.image, each.captions) for each in caption_samples()]


def overrides_of(command: str) -> tuple[str, list[str]]:
    words = shlex.split(command)[3:]
    return words[words.index("-o") + 1], [word for word in words if "=" in word]


def test_every_row_has_a_folder_of_its_own():
    folders = [overrides_of(command)[0] for command in COMMANDS]
    assert len(set(folders)) == len(folders) >= 30


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: overrides_of(command)[0])
def test_the_full_size_of_a_row_is_accepted(command):
    config = read_recipe("eve-base-pretrain", overrides_of(command)[1])
    assert (config.train.steps, config.train.batch_size) == (None, 2048)
    assert isinstance(starting_config(config.model), CONFIGS["eve"])


def teacher(target: str, folder: Path) -> Path:
    """A small image tokenizer, or a small frozen model."""
    torch.manual_seed(0)
    sizes = {"num_groups": 4, "num_blocks_per_group": 1, "hidden_size": 4, "vocab_size": 12}
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 2}
    codebook = FlavaImageCodebook(FlavaImageCodebookConfig(**sizes))
    model = codebook if target == "codes" else Dinov2Model(Dinov2Config(**tower))
    model.eval().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: overrides_of(command)[0])
def test_a_small_model_of_a_row_takes_a_step(command, tmp_path):
    """The same settings on a model of two layers, of which the last stands for the deep ones."""
    small = {"soft_layers": "[1]", "num_hidden_layers": "2", "num_experts": "4"}
    changes = ["model.overrides.patch_size=4"]  # 16 patches, of which 90 % can be masked
    for each in overrides_of(command)[1]:
        name, value = each.split("=", 1)
        if value == "TEACHER":
            value = str(teacher(command.rpartition("mim_target=")[2], tmp_path / "teacher"))
        if name.startswith(("model.overrides.", "task.")):
            changes.append(f"{name}={small.get(name.rpartition('.')[2], value)}")
    tree = micro_run(tmp_path, "pretraining").plain()
    config = RunConfig.build(apply_overrides(tree, changes), "ablation")
    ready = prepare(config, samples={"train": CAPTIONS})
    asked = {change.split("=")[0].removeprefix("model.overrides.") for change in changes}
    assert ready.loaded.model.config.num_hidden_layers == MICRO["num_hidden_layers"]
    known = {*ready.loaded.model.config.to_dict(), *(f"task.{name}" for name in PreTrainingConfig.model_fields)}
    assert asked <= known
    torch.manual_seed(0)
    output = ready.loaded.model(**next(iter(ready.loader.batches(0))))
    output.loss.backward()
    assert output.loss.isfinite()


def test_every_comparison_of_the_paper_has_its_section():
    titles = set(re.findall(r"^## ((?:Table|Figure) \d)", PAGE.read_text(), re.MULTILINE))
    assert titles == {f"Table {number}" for number in (1, 3, 5, 6, 7, 8)} | {f"Figure {number}" for number in (4, 5, 6)}
