"""The backbone: what may and what may not change a sample's states."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVisualQuestionAnswering

from eve_models import batch, build, pretraining_batch, relative_difference, tiny
from evle.errors import ConfigError, DataError
from evle.models.eve import EVEConfig, EVEForPreTraining, EVEForRetrieval, EVEForVQA, EVEModel
from evle.models.eve.embedding import patchify, unpatchify
from evle.models.positions import resize_positions
from evle.models.presets import PRESETS
from references import patches


@pytest.mark.parametrize(("name", "count"), [("eve-base", 475_197_696), ("eve-large", 1_326_101_504)])
def test_a_paper_size_has_its_number_of_parameters(name, count):
    with torch.device("meta"):
        model = EVEModel(EVEConfig.from_preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", [name for name, (family, _) in PRESETS.items() if family == "eve"])
def test_every_preset_builds_every_objective(name):
    with torch.device("meta"):
        model = EVEForPreTraining(EVEConfig.from_preset(name, objectives=("mim", "mlm", "itc", "itm")))
    assert {"eve", "decoder", "mlm_head", "contrast", "matching"} == {child for child, _ in model.named_children()}


def test_an_unknown_preset_or_field_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="no EVE preset 'eve-tinny'; did you mean 'eve-tiny'"):
        EVEConfig.from_preset("eve-tinny")
    with pytest.raises(ConfigError, match="'num_expert' \\(did you mean 'num_experts'\\?\\)"):
        EVEConfig.from_preset("eve-tiny", num_expert=4)


def test_an_impossible_configuration_names_all_its_problems():
    with pytest.raises(ConfigError) as error:
        tiny(hidden_size=25, image_size=17, soft_layers=(3,), second_choice="best", objectives=("mm",))
    for words in ("25", "17", r"[3]", "'best'", "'mm'"):
        assert words in str(error.value)


def test_patchify_equals_a_naive_loop_and_unpatchify_inverts_it():
    image = torch.randn(2, 3, 8, 12)
    cut = patchify(image, 4)
    assert torch.allclose(cut[1], torch.tensor(patches(image[1].tolist(), 4)))
    assert torch.equal(unpatchify(cut, 4, 2, 3), image)


def test_the_patch_projection_is_the_patch_convolution():
    model = build(EVEModel)
    image = torch.randn(2, 3, 16, 16)
    weight = model.image_embedding.patch.weight.unflatten(1, (3, 4, 4))
    expected = torch.nn.functional.conv2d(image, weight, model.image_embedding.patch.bias, stride=4).flatten(2).mT
    assert relative_difference(model.image_embedding.patch(patchify(image, 4)), expected) < 1e-5


def test_images_texts_and_pairs_give_states_of_their_sizes():
    model, inputs = build(EVEModel), batch()
    both = model(**inputs)
    assert both.image_hidden.shape == (3, 17, 24)
    assert both.text_hidden.shape == (3, 7, 24)
    image = model(pixel_values=inputs["pixel_values"])
    assert image.image_hidden.shape == (3, 17, 24)
    assert image.text_hidden is None
    text = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert text.text_hidden.shape == (3, 7, 24)
    assert text.image_hidden is None
    assert both.router["load"].shape == (1, 4)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 10), min_size=1, max_size=4),
    padding=st.integers(0, 2),
    with_image=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_sample_does_not_depend_on_its_neighbours_or_its_padding(lengths, padding, with_image, seed):
    model = build(EVEModel)
    torch.manual_seed(seed)
    texts = [torch.randint(1, 50, (length,)) for length in lengths]
    images = torch.randn(len(texts), 3, 16, 16)
    width = max(lengths) + padding
    input_ids = torch.stack([torch.cat([text, torch.zeros(width - len(text), dtype=torch.long)]) for text in texts])
    attention_mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    with torch.no_grad():
        together = model(images if with_image else None, input_ids, attention_mask)
        for row, text in enumerate(texts):
            alone = model(images[row : row + 1] if with_image else None, text[None])
            assert torch.allclose(together.text_hidden[row, : len(text)], alone.text_hidden[0], atol=1e-4)
            if with_image:
                assert torch.allclose(together.image_hidden[row], alone.image_hidden[0], atol=1e-4)


def test_the_text_changes_the_image_and_the_image_the_text():
    model, inputs = build(EVEModel), batch()
    with torch.no_grad():
        before = model(**inputs)
        other_text = model(**{**inputs, "input_ids": inputs["input_ids"].roll(1, 0)})
        other_image = model(**{**inputs, "pixel_values": -inputs["pixel_values"]})
    assert (before.image_hidden - other_text.image_hidden).abs().max() > 1e-3
    assert (before.text_hidden - other_image.text_hidden).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (24, 24), (8, 20)])
def test_any_image_size_that_is_a_multiple_of_the_patch_works(size):
    output = build(EVEModel)(pixel_values=torch.randn(1, 3, *size))
    assert output.image_hidden.shape == (1, 1 + size[0] * size[1] // 16, 24)


def test_positions_of_the_table_s_own_size_are_the_table():
    table = torch.randn(17, 8)
    assert resize_positions(table, 4, 4) is table
    assert torch.equal(resize_positions(table, 6, 2)[0], table[0])


def test_inputs_that_do_not_fit_are_refused_in_words():
    model = build(EVEModel)
    with pytest.raises(DataError, match=r"18 x 16 pixels; .* multiples of its patch, 4"):
        model(pixel_values=torch.zeros(1, 3, 18, 16))
    with pytest.raises(DataError, match="1 channels"):
        model(pixel_values=torch.zeros(1, 1, 16, 16))
    with pytest.raises(DataError, match="13 tokens is longer than this model's 12 positions"):
        model(input_ids=torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(DataError, match="2 images, input_ids 1 texts"):
        model(torch.zeros(2, 3, 16, 16), torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(DataError, match="neither"):
        model()


def test_inputs_are_not_written_to():
    model, inputs = build(EVEForPreTraining, objectives=("mim", "mlm", "itc", "itm")).train(), pretraining_batch()
    copies = {name: tensor.clone() for name, tensor in inputs.items()}
    model(**inputs).loss.backward()
    for name, tensor in inputs.items():
        assert torch.equal(tensor, copies[name])


def test_eager_and_sdpa_attention_agree_and_eager_returns_maps_that_ignore_padding():
    model, inputs = build(EVEModel), batch()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        sdpa = model(**inputs)
        with pytest.raises(ConfigError, match="set_attn_implementation\\('eager'\\)"):
            model(**inputs, output_attentions=True)
        model.set_attn_implementation("eager")
        eager = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert relative_difference(eager.text_hidden, sdpa.text_hidden) < 1e-4
    assert len(eager.attentions) == 3
    assert eager.attentions[0].shape == (3, 2, 24, 24)
    assert torch.allclose(eager.attentions[1].sum(-1), torch.ones(3, 2, 24), atol=1e-5)
    padding = inputs["attention_mask"] == 0
    assert eager.attentions[0][:, 0, 0, 17:][padding].max() == 0
    assert len(eager.hidden_states) == 4


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = build(EVEForPreTraining).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.eve.layers[0].gradient_checkpointing
        torch.manual_seed(5)
        model(**pretraining_batch()).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_every_parameter_learns():
    model = build(EVEForPreTraining, objectives=("mim", "mlm", "itc", "itm")).train()
    model(**pretraining_batch()).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("model_class", [EVEModel, EVEForPreTraining, EVEForRetrieval, EVEForVQA])
def test_a_saved_model_loads_back_bit_for_bit(model_class, tmp_path):
    model = build(model_class, num_labels=5)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.config.soft_layers == (2,)
    assert loaded.config.objectives == model.config.objectives
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_pretrained_backbone_goes_into_a_head_whose_own_parameters_are_new(tmp_path):
    pretrained = build(EVEForPreTraining)
    pretrained.save_pretrained(tmp_path)
    model, info = EVEForVQA.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    assert torch.equal(model.eve.norm.weight, pretrained.eve.norm.weight)
    assert torch.equal(model.eve.layers[2].feed_forward.gate.weight, pretrained.eve.layers[2].feed_forward.gate.weight)


def test_the_auto_classes_know_eve(tmp_path):
    build(EVEForVQA, num_labels=5).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), EVEConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), EVEModel)
    assert isinstance(AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path), EVEForVQA)
    assert isinstance(AutoModelForPreTraining.from_config(tiny()), EVEForPreTraining)


def test_new_weights_are_what_the_configuration_says():
    torch.manual_seed(0)
    model = EVEModel(tiny(hidden_size=64, vocab_size=500, layer_scale_init=0.3))
    assert model.text_embedding.word.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.layers[2].feed_forward.experts.up_proj.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.layers[0].feed_forward_scale.unique().tolist() == pytest.approx([0.3])
    assert model.layers[0].attention.q_bias.abs().max() == 0


def test_places_may_start_larger_than_other_weights():
    sizes = {"position_init_range": 0.5, "initializer_range": 0.02, "max_position_embeddings": 512}
    config = EVEConfig.from_preset("eve-tiny", **sizes)
    torch.manual_seed(0)
    model = EVEModel(config)
    for part in (model.image_embedding, model.text_embedding):
        assert part.position.std().item() == pytest.approx(0.5, rel=0.1)
        assert part.type_vector.std().item() == pytest.approx(0.5, rel=0.2)
    assert model.text_embedding.word.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_drop_path_grows_linearly_with_depth_and_acts_in_training_only():
    model = build(EVEModel, drop_path_rate=0.4)
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0.0, 0.2, 0.4])
    branch = torch.ones(2000, 1, 1)
    assert torch.equal(model.layers[2].drop_path(branch), branch)
    dropped = model.train().layers[2].drop_path(branch)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.4, abs=0.05)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_bfloat16_autocast_is_finite_and_close(implementation):
    model, inputs = build(EVEForPreTraining, second_choice="top"), pretraining_batch()
    model.set_experts_implementation(implementation)
    exact = model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    output.loss.backward()
    for name, loss in output.losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.losses[name].item(), rel=0.05), name
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("there", "expected"), [(False, "eager"), (True, "grouped_mm")])
def test_a_cpu_loops_over_the_experts_and_an_accelerator_groups_them(there, expected, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    with torch.device("meta"):
        assert EVEModel(EVEConfig.from_preset("eve-tiny")).config._experts_implementation == expected


def test_the_users_implementations_win(tmp_path):
    build(EVEForVQA).save_pretrained(tmp_path)
    model = EVEForVQA.from_pretrained(tmp_path, experts_implementation="batched_mm", attn_implementation="sdpa")
    assert model.config._experts_implementation == "batched_mm"
    assert model.config._attn_implementation == "sdpa"
    assert model(**batch()).logits.isfinite().all()
