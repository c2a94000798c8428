"""Tower states that are computed once: the same training, at the cost of the layers between the towers."""

from pathlib import Path

import numpy as np
import pytest
import torch

import vle_models
from evle.engine.tower_states import TowerStates
from evle.errors import ConfigError
from evle.models.folders import read_tensors
from evle.models.vle import VLEModel
from evle.models.vle.text import KnownTexts
from evle.run.dry_run import rehearse
from evle.run.prepare import prepare
from evle.run.training import train_run
from micro import SAMPLES, Damaged, micro_run

FROZEN = ["vision_model", "text_model"]
STILL = {"scale": [1, 1], "ratio": [1, 1], "flip": 0}


def config(folder, task="retrieval", *, cached=1, freeze=FROZEN, family="vle", **changes):
    train = {"steps": 6, "batch_size": 4, "cache_towers": cached, **changes.pop("train", {})}
    return micro_run(folder, task, {"model": {"freeze": freeze}, "train": train, **changes}, family=family)


def samples():
    return {"train": SAMPLES["retrieval"]()}


@pytest.fixture
def trained(tmp_path):
    def learn(name, **changes):
        train_run(config(tmp_path / name, image=STILL, **changes), samples=samples())
        return read_tensors(tmp_path / name / "model")

    return learn


def test_training_on_cached_states_equals_training_through_the_towers(trained):
    through, cached = trained("through", cached=0), trained("cached", cached=2)
    for name, tensor in through.items():
        torch.testing.assert_close(cached[name], tensor, atol=2e-5, rtol=1e-4)


def test_the_trained_layers_change(trained):
    one, six = trained("one", train={"steps": 1}), trained("six")
    assert not torch.equal(one["vle.image_projection_layer.weight"], six["vle.image_projection_layer.weight"])


def cached_states(folder, *, views=1, task="retrieval", given=None, **changes):
    ready = prepare(config(folder, task, cached=views, **changes), samples=given or {"train": SAMPLES[task]()})
    return ready, TowerStates(ready.loaded.model, ready.task, ready.training, ready.train, seed=0)


def test_images_that_do_not_vary_are_read_once_and_texts_keep_their_variety(tmp_path):
    ready, states = cached_states(tmp_path, views=8, image=STILL, task="retrieval")
    views = states.views["red"]
    assert len(views) == 8
    assert len({id(view["image"]) for view in views}) == 1
    pixels = ready.task.collate_images(
        [ready.task.features(ready.training[0], np.random.default_rng(0), True)["image"]]
    )
    with torch.no_grad():
        expected = ready.loaded.model.vle.vision_model.eval()(pixels)[0][0]
    torch.testing.assert_close(views[0]["image"], expected)


def test_an_epoch_draws_one_of_several_views(tmp_path):
    ready, states = cached_states(tmp_path, views=3, image={"scale": [0.3, 0.9], "color_jitter": 0.5})
    rng = np.random.default_rng(0)
    drawn = {id(states.features(ready.training[0], rng)["image"]) for _ in range(40)}
    assert drawn == {id(view["image"]) for view in states.views["red"]}
    assert len(drawn) == 3


def test_an_unreadable_sample_is_left_out_and_named(tmp_path):
    given = {"train": Damaged(SAMPLES["retrieval"]())}
    report = train_run(config(tmp_path / "run"), samples=given)
    assert any("the fourth sample is damaged" in line for line in report.summary)


def test_known_texts_are_those_of_the_tower_and_read_once():
    model = vle_models.build(VLEModel)
    reads = KnownTexts(model.text_model.train())
    ids, mask = torch.tensor([[1, 5, 2, 0], [1, 6, 7, 2], [1, 5, 2, 0]]), torch.tensor([[1, 1, 1, 0]] * 3)
    mask[1] = 1
    states = reads(ids, mask)
    assert model.text_model.training
    with torch.no_grad():
        expected = model.text_model.eval()(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(states[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-4)
    assert not states[~mask.bool()].any()
    reads.tower = None  # type: ignore[assignment]
    assert torch.equal(reads(ids[:1, :3], mask[:1, :3]), states[:1, :3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["vision_model"]}, r"cache_towers=1: text_model is trained.*model.freeze="),
        ({"freeze": []}, r"vision_model is trained"),
        ({"family": "eve", "freeze": []}, "EVEForRetrieval has no towers; set train.cache_towers=0"),
        ({"task": "nlvr2"}, "nlvr2 does not read one image per sample"),
    ],
)
def test_what_cannot_be_cached_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        cached_states(tmp_path, **changes)


def test_a_dry_run_refuses_trained_towers_and_explains_its_times(tmp_path):
    images = Path(__file__).parents[2] / "examples/images"
    data = {"train": {"source": "folder", "path": str(images), "split": None}}
    with pytest.raises(ConfigError, match="text_model is trained"):
        rehearse(config(tmp_path, freeze=["vision_model"], data=data))
    lines = rehearse(config(tmp_path, data=data)).lines
    assert any("the trial batches ran the towers" in line for line in lines)


def test_a_compiled_or_measured_training_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cache_towers works with compile=false"):
        config(tmp_path, train={"compile": True})


def test_questions_are_answered_from_cached_states(tmp_path):
    train_run(config(tmp_path / "run", "vqa"), samples={"train": SAMPLES["vqa"]()})
    assert (tmp_path / "run" / "model" / "config.json").is_file()
