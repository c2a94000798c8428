"""VLE's heads: their losses, gradients where they belong, a batch learned by heart, files that round-trip."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import eve_models
import vle_models
from evle.errors import ConfigError, DataError
from evle.models.eve import EVEForRetrieval
from evle.models.vle import (
    VLEForITM,
    VLEForMLM,
    VLEForNLVR2,
    VLEForPBC,
    VLEForPreTraining,
    VLEForRetrieval,
    VLEForVCRQ2A,
    VLEForVCRQA2R,
    VLEForVQA,
    VLEModel,
)
from evle.models.vle.matching import FusionBatch, pair_negatives
from processes import run_on_two
from vle_models import batch, build, pretraining_batch, relative_difference, tiny, vcr_batch
from vle_processes import check_negatives_across_processes

HEADS = {
    VLEForVQA: "vqa_classifier",
    VLEForITM: "itm_score",
    VLEForMLM: "mlm_score",
    VLEForPBC: "pbc_classifier",
    VLEForRetrieval: "contrast",
    VLEForNLVR2: "nlvr2_classifier",
    VLEForVCRQ2A: "vcr_q2a_logit",
    VLEForVCRQA2R: "vcr_qa2r_logit",
    VLEForPreTraining: "mpc_classifier",
}


def labelled(model_class) -> dict[str, torch.Tensor]:
    """A batch with which a model of the class returns its losses."""
    generator = torch.Generator().manual_seed(7)
    if model_class is VLEForVQA:
        return {**batch(), "labels": torch.eye(3, 5)}
    if model_class is VLEForITM:
        return {**batch(), "labels": torch.tensor([0, 1, 1])}
    if model_class is VLEForMLM:
        inputs = batch()
        return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}
    if model_class is VLEForPBC:
        return {**batch(), "labels": torch.randint(0, 2, (3, 16), generator=generator)}
    if model_class is VLEForRetrieval:
        return batch()
    if model_class is VLEForNLVR2:
        inputs = batch()
        pairs = torch.stack([inputs["pixel_values"], inputs["pixel_values"].flip(0)], dim=1)
        return {**inputs, "pixel_values": pairs, "labels": torch.tensor([1, 0, 0])}
    if model_class is VLEForPreTraining:
        return pretraining_batch()
    return {**vcr_batch(), "labels": torch.tensor([2, 0])}


def test_vqa_is_binary_cross_entropy_times_the_number_of_answers():
    model = build(VLEForVQA)
    labels = torch.tensor([[1.0, 0.3, 0, 0, 0], [0, 0, 0.6, 0, 0], [0, 0, 0, 0, 0]])
    output = model(**batch(), labels=labels)
    total, logits = 0.0, output.logits.detach()
    for row in range(3):
        for answer in range(5):
            chance = logits[row, answer].sigmoid()
            total -= labels[row, answer] * chance.log() + (1 - labels[row, answer]) * (1 - chance).log()
    assert output.losses["answers"].item() == pytest.approx(float(total / 15 * 5), rel=1e-5)
    assert torch.equal(output.loss, output.losses["answers"])
    with pytest.raises(DataError, match=r"labels of shape \(3, 4\) do not fit logits of shape \(3, 5\)"):
        model(**batch(), labels=torch.zeros(3, 4))


def test_itm_and_mlm_and_pbc_are_cross_entropies():
    itm = build(VLEForITM)(**labelled(VLEForITM))
    assert torch.allclose(itm.loss, -itm.logits.log_softmax(-1)[[0, 1, 2], [0, 1, 1]].mean())

    inputs = labelled(VLEForMLM)
    mlm = build(VLEForMLM)(**inputs)
    assert mlm.logits.shape == (3, 7, 50)
    chosen = inputs["labels"] != -100
    assert torch.allclose(mlm.loss, F.cross_entropy(mlm.logits[chosen], inputs["labels"][chosen]))

    inputs = labelled(VLEForPBC)
    inputs["labels"][0] = -100
    pbc = build(VLEForPBC)(**inputs)
    assert pbc.logits.shape == (3, 16, 2)
    assert torch.allclose(pbc.loss, F.cross_entropy(pbc.logits[1:].reshape(-1, 2), inputs["labels"][1:].reshape(-1)))


def test_pbc_leaves_the_class_token_out():
    model = build(VLEForPBC)
    output = model(**batch())
    assert torch.equal(output.logits, model.pbc_classifier(output.image_hidden[:, 1:]))


def test_the_masked_word_decoder_is_the_word_embedding(tmp_path):
    model = build(VLEForMLM)
    decoder, words = model.mlm_score[1].predictions.decoder, model.vle.text_model.embeddings.word_embeddings
    assert decoder.weight is words.weight
    assert decoder.bias is model.mlm_score[1].predictions.bias
    model.save_pretrained(tmp_path)
    loaded = VLEForMLM.from_pretrained(tmp_path)
    assert loaded.mlm_score[1].predictions.decoder.weight is loaded.get_input_embeddings().weight


def test_an_untied_decoder_is_saved_with_its_bias_after_a_change_of_vocabulary(tmp_path):
    model = build(VLEForMLM, tie_word_embeddings=False)
    model.resize_token_embeddings(53, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().bias.copy_(torch.arange(53.0))
    model.save_pretrained(tmp_path)
    loaded, info = VLEForMLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(loaded.get_output_embeddings().bias, torch.arange(53.0))


@pytest.mark.parametrize("model_class", [VLEForMLM, VLEForPreTraining, VLEForVQA])
def test_a_vocabulary_grows_and_is_saved_so(model_class, tmp_path):
    model = build(model_class)
    before = model.get_input_embeddings().weight.detach().clone()
    model.decoder_in_file = torch.zeros(50, 16)  # as where a released file's decoder was not the embedding
    model.resize_token_embeddings(53, mean_resizing=False)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == 53
    assert torch.equal(loaded.get_input_embeddings().weight[:50], before)
    if model_class is not VLEForVQA:
        decoder = loaded.get_output_embeddings()
        assert decoder.weight is loaded.get_input_embeddings().weight
        assert decoder.bias is loaded.mlm_score[1].predictions.bias
        assert decoder.bias.shape == (53,)
    if model_class is VLEForMLM:
        inputs = batch()
        inputs["input_ids"][:, 1] = 52
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        assert loaded(**inputs).logits.shape[-1] == 53


@pytest.mark.parametrize("model_class", HEADS)
def test_every_parameter_of_a_head_model_learns(model_class):
    model = build(model_class, objectives=("mlm", "itm", "mpc", "pbc", "itc"))
    model(**labelled(model_class)).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # The pooler, and what feeds only it, serve no head that reads single states.
    unused = {VLEForMLM: "image", VLEForPBC: "text"}.get(model_class)
    allowed = ("pooler", f"cross_modal_{unused}_layers.1") if unused else ()
    assert [name for name in without if not any(part in name for part in allowed)] == []
    for part in ("text_model", "vision_model", "cross_modal_text_layers.0", "cross_modal_image_layers.0"):
        grads = [p.grad for name, p in model.named_parameters() if part in name and p.grad is not None]
        assert max(float(grad.abs().max()) for grad in grads) > 0, part
    assert any(HEADS[model_class] in name for name, _ in model.named_parameters())


WITHOUT_A_TASK = (VLEForMLM, VLEForPBC)  # tests/tasks/test_overfitting.py has the others


@pytest.mark.parametrize(
    "model_class", [pytest.param(each, marks=() if each in WITHOUT_A_TASK else pytest.mark.slow) for each in HEADS]
)
def test_a_batch_can_be_learned_by_heart(model_class):
    model = build(model_class, objectives=("mlm", "itm", "mpc", "pbc"), pooling="mean").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.4)
    inputs = labelled(model_class)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    curves: list[dict[str, float]] = []
    for _ in range(90):
        optimizer.zero_grad()
        losses = model(**inputs).losses
        sum(losses.values()).backward()
        optimizer.step()
        curves.append({name: float(loss.detach()) for name, loss in losses.items()})
        if all(loss < 0.25 * curves[0][name] for name, loss in curves[-1].items()):
            break
    assert all(loss < 0.25 * curves[0][name] for name, loss in curves[-1].items()), (curves[0], curves[-1])


@pytest.mark.parametrize("model_class", HEADS)
def test_a_saved_model_loads_back_and_computes_the_same(model_class, tmp_path):
    model = build(model_class)
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    inputs = {name: tensor for name, tensor in labelled(model_class).items() if name != "labels"}
    outputs = []
    for each in (model, loaded):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(each(**inputs).logits)
    assert torch.equal(*outputs)


def test_a_head_starts_from_the_backbone_alone_and_from_pretraining(tmp_path):
    backbone = build(VLEModel)
    backbone.save_pretrained(tmp_path / "model")
    model, report = VLEForVQA.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"vqa_classifier"}
    assert torch.equal(model.vle.image_projection_layer.weight, backbone.image_projection_layer.weight)

    pretrained = build(VLEForPreTraining)
    pretrained.save_pretrained(tmp_path / "pretrained")
    for model_class, name in ((VLEForMLM, "mlm_score"), (VLEForITM, "itm_score"), (VLEForPBC, "pbc_classifier")):
        model, report = model_class.from_pretrained(tmp_path / "pretrained", output_loading_info=True)
        assert not report["missing_keys"]
        theirs = dict(getattr(pretrained, name).named_parameters())
        for key, parameter in getattr(model, name).named_parameters():
            assert torch.equal(parameter, theirs[key])


@settings(max_examples=10, deadline=None)
@given(extra=st.integers(0, 5), row=st.integers(0, 2))
def test_logits_do_not_depend_on_padding_or_neighbours(extra, row):
    inputs = batch()
    for model in MODELS:
        with torch.no_grad():
            whole = model(**{**inputs, **{k: F.pad(inputs[k], (0, extra)) for k in ("input_ids", "attention_mask")}})
            alone = model(**{name: tensor[row : row + 1] for name, tensor in inputs.items()})
        size = alone.logits.shape[1]
        assert relative_difference(whole.logits[row : row + 1, :size], alone.logits) < 1e-4


MODELS = [build(model_class) for model_class in (VLEForVQA, VLEForITM, VLEForPBC)]


@torch.no_grad()
def test_retrieval_ranks_by_the_towers_alone_and_matches_by_the_fusion():
    model = build(VLEForRetrieval)
    inputs = batch()
    images = model.get_image_features(inputs["pixel_values"])
    texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    assert images.shape == texts.shape == (3, 24)
    assert torch.allclose(images.norm(dim=1), torch.ones(3))
    output = model(**inputs)
    assert torch.allclose(output.logits, images @ texts.T / 0.07, atol=1e-4)
    targets = torch.eye(3)
    expected = (F.cross_entropy(output.logits, targets) + F.cross_entropy(output.logits.T, targets)) / 2
    assert torch.allclose(output.losses["itc"], expected, atol=1e-5)
    assert relative_difference(output.itm_logits[:3], model.itm_logits(**inputs)) < 1e-4
    assert output.itm_labels.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("model_class", [VLEForRetrieval, VLEForITM])
@torch.no_grad()
def test_pairs_that_share_images_and_texts_are_matched_as_one_by_one(model_class):
    model, inputs = build(model_class), batch()
    encoded = []
    for tower in (model.vle.vision_model, model.vle.text_model):
        tower.register_forward_hook(lambda tower, given, output: encoded.append(len(given[0])))
    images, texts = torch.tensor([2, 0, 0, 1, 2]), torch.tensor([0, 0, 2, 1, 1])
    together = model.itm_logits(**inputs, image_rows=images, text_rows=texts)
    assert encoded == [3, 3]
    for row, (image, text) in enumerate(zip(images, texts, strict=True)):
        pair = (inputs["input_ids"][text], inputs["pixel_values"][image], inputs["attention_mask"][text])
        alone = model.itm_score(model.vle(*(tensor[None] for tensor in pair)).pooler_output)
        assert relative_difference(together[row], alone) < 1e-4
    with pytest.raises(DataError, match="3 images and 2 texts do not make pairs"):
        model.itm_logits(inputs["pixel_values"], inputs["input_ids"][:2])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_retrieval_features_do_not_depend_on_padding(pooling):
    model = build(VLEForRetrieval, pooling=pooling)
    inputs = batch()
    with torch.no_grad():
        padded = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        alone = model.get_text_features(inputs["input_ids"][2:, :3], inputs["attention_mask"][2:, :3])
    assert relative_difference(padded[2:], alone) < 1e-4


@pytest.mark.parametrize("library", [eve_models, vle_models])
def test_several_texts_of_an_image_are_as_many_pairs_for_contrast(library):
    model_class = {eve_models: EVEForRetrieval, vle_models: VLEForRetrieval}[library]
    model = library.build(model_class, objective_weights={"itm": 0.0})
    inputs = library.batch(size=6)
    inputs["pixel_values"] = inputs["pixel_values"][:3]
    repeated = {**inputs, "pixel_values": inputs["pixel_values"].repeat_interleave(2, dim=0)}
    ids = torch.tensor([4, 4, 5, 5, 6, 6])
    loss = model(**inputs, match_ids=ids).loss
    torch.testing.assert_close(loss, model(**repeated, match_ids=ids).loss)
    trained = []
    for asked in ({"match_ids": ids}, {}):  # by default, each image matches its own texts
        torch.manual_seed(0)  # of dropout
        trained.append(model.train()(**inputs, **asked).loss)
    assert torch.equal(*trained)
    with pytest.raises(DataError, match="3 images, input_ids 5 texts; pair each image with one text, or for contrast"):
        model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"][:5])
    with pytest.raises(DataError, match="3 match_ids for 6 texts; give one to each text"):
        model(**inputs, match_ids=ids[:3])
    with pytest.raises(DataError, match=r"6 texts for 3 images: matching \(ITM\) takes one text for each image"):
        library.build(model_class).train()(**inputs)


@torch.no_grad()
def test_texts_can_start_in_the_space_of_the_text_tower(tmp_path):
    width = tiny().text_config.hidden_size
    sizes = {"hidden_size": width, "projection_dim": width, "num_attention_heads": 2, "pooling": "mean"}
    model = VLEForRetrieval(tiny(**sizes, text_projection_init="identity")).eval()
    ids = batch()["input_ids"][:1]
    mean = model.vle.text_model(input_ids=ids).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(model.get_text_features(ids), F.normalize(mean, dim=-1))
    model.contrast.text_projection.weight.mul_(2).add_(1)
    model.save_pretrained(tmp_path)
    assert torch.equal(
        VLEForRetrieval.from_pretrained(tmp_path).contrast.text_projection.weight, model.contrast.text_projection.weight
    )
    with pytest.raises(ConfigError, match=rf"of the text tower's width; a projection is from {width} to 40"):
        VLEForRetrieval(tiny(**{**sizes, "projection_dim": 40}, text_projection_init="identity"))


@torch.no_grad()
def test_a_negative_is_never_of_the_same_id_and_reuses_the_towers_states():
    model = build(VLEForRetrieval)
    inputs = batch()
    fusion = FusionBatch(model.vle)
    images = fusion.add_images(model.vle.encode_image(inputs["pixel_values"]))
    texts = fusion.add_texts(model.vle.encode_text(*list(inputs.values())[1:]), inputs["attention_mask"])
    ids = torch.tensor([4, 4, 9])  # rows 0 and 1 belong together: their only negative is row 2
    found = pair_negatives(fusion, **inputs, images=images, texts=texts, match_ids=ids, similarities=None)
    assert found.tolist() == [True] * 3
    negative_images, negative_texts, _ = fusion.pairs["negatives"]
    assert negative_images[:5].tolist() == [0, 1, 2, 2, 2]
    assert negative_texts[:2].tolist() == [2, 2]
    assert negative_texts[3:].tolist() == [0, 1, 2]
    assert [len(states) for states in (*fusion.images, *fusion.texts)] == [3, 3]


def test_a_batch_of_one_image_has_no_negative_and_no_matching_loss():
    model = build(VLEForRetrieval)
    output = model(**batch(), match_ids=torch.tensor([1, 1, 1]))
    assert float(output.losses["itm"]) == 0
    output.loss.backward()
    assert model.itm_score.fc.weight.grad.abs().max() == 0


def test_matching_of_weight_0_is_not_computed():
    output = build(VLEForRetrieval, objective_weights={"itm": 0.0})(**batch())
    assert set(output.losses) == {"itc"}
    assert output.itm_logits is None


def test_negatives_come_from_all_processes():
    run_on_two(check_negatives_across_processes)


@torch.no_grad()
def test_nlvr2_classifies_two_fused_pairs_side_by_side():
    model = build(VLEForNLVR2)
    inputs = labelled(VLEForNLVR2)
    output = model(**inputs, output_hidden_states=True)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    pooled = [model.vle(pixel_values=inputs["pixel_values"][:, side], **text).pooler_output for side in range(2)]
    assert relative_difference(output.logits, model.nlvr2_classifier(torch.cat(pooled, dim=1))) < 1e-5
    assert output.image_hidden.shape == (3, 2, 17, 24)
    assert output.text_hidden.shape == (3, 2, 7, 24)
    assert output.losses["choice"] == F.cross_entropy(output.logits, inputs["labels"])
    with pytest.raises(DataError, match="two images per statement"):
        model(**batch())


def test_attention_maps_come_through_a_head():
    for model in MODELS:
        output = model(**batch(), output_attentions=True)
        assert output.attentions["text_to_image"][0].shape == (3, 3, 7, 17)
