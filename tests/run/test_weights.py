"""Where a run's first weights come from; checkpoints of runs are walked through in test_recipe.py."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, DebertaV2Config, DebertaV2Model, ViTConfig, ViTModel

from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEConfig, EVEForRetrieval
from evle.models.vle import VLEConfig, VLEForPreTraining, VLEForVCRQ2A, VLEForVQA, VLEModel
from evle.run.prepare import prepare
from evle.run.tokenizer import read_tokenizer
from evle.run.weights import ModelConfig, build_model, starting_config
from evle.transforms.text import train_tokenizer
from micro import MICRO_VLE, micro_run, vqa_samples

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}
TINY = {**SIZES, "stem_channels": [], "soft_layers": [1], "num_experts": 2}


def test_the_image_side_of_a_preset_starts_from_a_vision_transformer(tmp_path):
    vit = ViTModel(ViTConfig(**SIZES), add_pooling_layer=False)
    vit.save_pretrained(tmp_path)
    options = ModelConfig(preset="eve-tiny", vision=str(tmp_path), overrides=TINY)
    loaded = build_model(EVEForRetrieval, options, starting_config(options), {})
    cls_token = loaded.model.get_parameter("eve.image_embedding.cls_token")
    assert torch.equal(cls_token, vit.embeddings.cls_token.flatten())
    assert "2 blocks started from the vision checkpoint" in loaded.lines()[0]


def test_another_image_size_resizes_the_positions_and_says_from_which(tmp_path):
    EVEForRetrieval(EVEConfig.from_preset("eve-tiny", **TINY)).save_pretrained(tmp_path)
    options = ModelConfig(init=str(tmp_path), overrides={"image_size": 48})
    loaded = build_model(EVEForRetrieval, options, starting_config(options), {})
    assert loaded.model.get_parameter("eve.image_embedding.position").shape == (1 + 9, 32)
    assert loaded.resized == ["eve.image_embedding.position from 32 to 48 pixels"]


def test_two_sources_of_weights_are_refused():
    with pytest.raises(ConfigError, match=r"model\.init=runs/a and model\.vision=vit both name weights"):
        starting_config(ModelConfig(init="runs/a", vision="vit"))


def test_eve_has_no_text_tower_to_start_from():
    with pytest.raises(ConfigError, match=r"model\.text=deberta starts only VLE models; eve-tiny is not one"):
        starting_config(ModelConfig(preset="eve-tiny", text="deberta"))
    with pytest.raises(ConfigError, match=r"model\.init=runs/a and model\.text=deberta both name weights"):
        starting_config(ModelConfig(init="runs/a", text="deberta"))


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A CLIP of three layers at 32 pixels, and a DeBERTa with its tokenizer."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**{**SIZES, "num_hidden_layers": 3, "patch_size": 8}))
    clip.save_pretrained(folder / "clip")
    tokenizer = train_tokenizer(["which colour is it", "red green blue"], 300)
    text = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    deberta = DebertaV2Model(DebertaV2Config(**text, vocab_size=320, relative_attention=True, pos_att_type=["p2c"]))
    deberta.save_pretrained(folder / "deberta")
    tokenizer.save_pretrained(folder / "deberta")
    return folder, clip, deberta, tokenizer


def test_vle_starts_from_a_clip_and_a_deberta(towers, tmp_path):
    """The preset's one image layer is CLIP's first, its 16 pixels take CLIP's positions interpolated from 32."""
    folder, clip, deberta, tokenizer = towers
    changes = {"model": {"vision": str(folder / "clip"), "text": str(folder / "deberta")}, "tokenizer": {}}
    tree = micro_run(tmp_path, "vqa", changes, "vle").plain()
    tree["model"]["overrides"] = {name: MICRO_VLE[name] for name in MICRO_VLE if name != "text_config"} | {
        "vision_config": {"image_size": 16, "num_hidden_layers": 1}
    }
    tree["tokenizer"] = {}
    ready = prepare(type(micro_run(tmp_path, "vqa")).build(tree, "test"), samples={"train": vqa_samples()})
    model, config = ready.loaded.model, ready.loaded.model.config
    assert (config.vision_config.num_hidden_layers, config.image_size, config.patch_size) == (1, 16, 8)
    assert (config.text_config.hidden_size, config.vocab_size) == (24, 320)
    image, text = model.vle.vision_model.vision_model.state_dict(), model.vle.text_model.state_dict()
    before = clip.state_dict()
    for name, tensor in image.items():
        if "position_embedding" not in name:
            assert torch.equal(tensor, before[name]), name
    assert image["embeddings.position_embedding.weight"].shape == (5, 32)
    assert torch.equal(
        image["embeddings.position_embedding.weight"][0], before["embeddings.position_embedding.weight"][0]
    )
    for name, tensor in deberta.state_dict().items():
        assert torch.equal(text[name], tensor), name
    assert ready.task.processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert f"the image tower is {folder / 'clip'}; the text tower is {folder / 'deberta'}" in ready.notes[0]
    names = {name for name, _ in model.named_parameters()}
    towers = ("vle.vision_model.", "vle.text_model.")
    assert ready.loaded.new == {name for name in names if not name.startswith(towers)}  # optim.lr_mult is for them
    assert ready.loaded.new


def test_folders_that_are_no_towers_are_refused(towers, tmp_path):
    folder = towers[0]
    with pytest.raises(CheckpointError, match="nowhere: holds no model"):
        starting_config(ModelConfig(preset="vle-tiny", text="nowhere"))
    with pytest.raises(ConfigError, match="clip: no tokenizer"):
        read_tokenizer(folder / "clip")


def micro_vle(**fields):
    return VLEConfig.from_preset("vle-tiny", **{**MICRO_VLE, "vocab_size": 300, **fields})


@pytest.mark.parametrize("as_pickle", [False, True])
def test_a_released_folder_of_the_backbone_starts_a_task(as_pickle, tmp_path):
    """As the release writes it: names without the head's prefix, counting buffers, perhaps pytorch_model.bin."""
    torch.manual_seed(0)
    backbone = VLEModel(micro_vle())
    backbone.save_pretrained(tmp_path)
    tensors = {**backbone.state_dict(), "text_model.embeddings.position_ids": torch.arange(8)[None]}
    if as_pickle:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    options = ModelConfig(init=str(tmp_path))
    loaded = build_model(VLEForVQA, options, starting_config(options), {"id2label": {0: "a", 1: "b", 2: "c"}})
    assert {name.split(".")[0] for name in loaded.new} == {"vqa_classifier"}
    assert loaded.unused == []
    own = loaded.model.vle.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in backbone.state_dict().items())


def test_a_pickle_that_holds_more_than_weights_is_refused_unread(tmp_path):
    VLEModel(micro_vle()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weights": print}, tmp_path / "pytorch_model.bin")
    options = ModelConfig(init=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: holds more than tensors \(print\)"):
        build_model(VLEForVQA, options, starting_config(options), {})


def test_types_for_objects_are_added_beside_the_old_ones(tmp_path):
    torch.manual_seed(0)
    backbone = VLEModel(micro_vle())
    backbone.save_pretrained(tmp_path)
    options = ModelConfig(init=str(tmp_path))
    loaded = build_model(VLEForVCRQ2A, options, starting_config(options), {"num_token_types": 6})
    table = loaded.model.vle.token_type_embeddings.weight.detach()
    assert torch.equal(table[:2], backbone.token_type_embeddings.weight)
    assert table.shape == (6, 32)
    assert len(table.unique(dim=0)) == 6  # no two objects are alike
    assert loaded.resized == ["vle.token_type_embeddings.weight from 2 to 6 token types"]


def test_other_classes_of_objects_make_a_new_last_layer(tmp_path):
    torch.manual_seed(0)
    model = VLEForPreTraining(micro_vle(object_classes=["cat", "dog"]))
    model.save_pretrained(tmp_path)
    options = ModelConfig(init=str(tmp_path))
    kept = build_model(VLEForPreTraining, options, starting_config(options), {"object_classes": ["cat", "dog"]})
    other = build_model(VLEForPreTraining, options, starting_config(options), {"object_classes": ["cat", "cow"]})
    assert kept.new == frozenset()
    assert torch.equal(kept.model.mpc_classifier[3].weight, model.mpc_classifier[3].weight)
    assert other.new == {"mpc_classifier.3.weight", "mpc_classifier.3.bias"}


def test_a_copy_of_a_tied_weight_in_the_file_does_not_overwrite_the_weight(tmp_path):
    torch.manual_seed(0)
    model = VLEForPreTraining(micro_vle(objectives=["mlm"]))
    model.save_pretrained(tmp_path)
    words = model.vle.text_model.embeddings.word_embeddings.weight
    tensors = {**load_file(tmp_path / "model.safetensors"), "mlm_score.1.predictions.decoder.weight": words + 1}
    save_file(tensors, tmp_path / "model.safetensors")
    options = ModelConfig(init=str(tmp_path))
    loaded = build_model(VLEForPreTraining, options, starting_config(options), {})
    assert loaded.new == frozenset()
    assert torch.equal(loaded.model.vle.text_model.embeddings.word_embeddings.weight, words)


def test_a_vle_of_another_size_than_its_preset_is_refused(tmp_path):
    VLEModel(micro_vle()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has text_config\.\w+ \d+, model\.preset=vle-tiny has"):
        starting_config(ModelConfig(init=str(tmp_path), preset="vle-tiny", overrides={"vision_config": {}, **TOP}))


TOP = {name: value for name, value in MICRO_VLE.items() if not name.endswith("_config")}


def test_new_heads_start_at_random_and_the_backbone_from_the_checkpoint(tmp_path):
    """As EVE's release fine-tunes retrieval."""
    before = EVEForRetrieval(EVEConfig.from_preset("eve-tiny", **TINY))
    before.save_pretrained(tmp_path)
    for new_heads in (False, True):
        options = ModelConfig(init=str(tmp_path), new_heads=new_heads)
        loaded = build_model(EVEForRetrieval, options, starting_config(options), {})
        heads = {name for name in before.state_dict() if not name.startswith("eve.")}
        assert loaded.new == (heads if new_heads else set())
        for name, tensor in before.state_dict().items():
            is_kept = not new_heads or name.startswith("eve.")
            if is_kept or name.endswith("weight"):
                assert torch.equal(loaded.model.state_dict()[name], tensor) == (is_kept or "norm" in name), name
