"""What VLE's distributed tests run in two processes; a spawned process can import only a file with a plain name."""

import torch
from torch import Tensor

from evle.models.vle import VLEForPreTraining, VLEForRetrieval
from evle.models.vle.matching import FusionBatch, pair_negatives
from vle_models import batch, build, pretraining_batch


def negative_rows(
    model: VLEForRetrieval, inputs: dict[str, Tensor], ids: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Which pairs have negatives, and of each negative pair the image's states and the text's, without padding."""
    fusion = FusionBatch(model.vle)
    images = fusion.add_images(model.vle.encode_image(inputs["pixel_values"]))
    mask = inputs["attention_mask"]
    texts = fusion.add_texts(model.vle.encode_text(inputs["input_ids"], mask), mask)
    found = pair_negatives(fusion, **inputs, images=images, texts=texts, match_ids=ids, similarities=None)
    negative_images, negative_texts, _ = fusion.pairs["negatives"]
    all_images = [row for states in fusion.images for row in states]
    all_texts = [
        row[real.bool()]
        for states, masks in zip(fusion.texts, fusion.masks, strict=True)
        for row, real in zip(states, masks, strict=True)
    ]
    return found, [all_images[number] for number in negative_images], [all_texts[number] for number in negative_texts]


def check_negatives_across_processes(process: int) -> None:
    """Two processes with one pair each: the only negatives lie in the other one, whose text is longer or shorter."""
    model = build(VLEForRetrieval)
    whole = batch(2, 7)  # real lengths 7 and 5
    own = {name: rows[process : process + 1] for name, rows in whole.items()}
    own = {name: rows if rows.dim() == 4 else rows[:, : 7 - 2 * process] for name, rows in own.items()}

    found, images, texts = negative_rows(model, own, torch.tensor([process]))
    # The same in a lone process that has both pairs: images 0 1 with texts 1 0, images 1 0 with texts 0 1.
    with torch.no_grad():
        all_images, all_texts = (
            model.vle.encode_image(whole["pixel_values"]),
            model.vle.encode_text(*list(whole.values())[1:]),
        )
    assert found.tolist() == [True]
    for number, (image, text) in enumerate(((process, 1 - process), (1 - process, process))):
        assert torch.allclose(images[number], all_images[image], atol=1e-5)
        assert torch.allclose(texts[number], all_texts[text, : 7 - 2 * text], atol=1e-5)

    output = model(**own, match_ids=torch.tensor([process]))
    assert output.itm_labels.tolist() == [1, 0, 0]
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def check_a_process_with_nothing_to_do(process: int) -> None:
    """The second process has no object, no masked word, no known patch and no pair to match: both still step together,
    and all parameters learn."""
    model = torch.nn.parallel.DistributedDataParallel(build(VLEForPreTraining).train())
    inputs = pretraining_batch()
    match_ids = torch.arange(3)
    if process == 1:
        inputs["mpc_patches"] = torch.zeros_like(inputs["mpc_patches"])
        for name in ("mlm_labels", "pbc_labels", "mpc_labels"):
            inputs[name] = torch.full_like(inputs[name], -100)
        match_ids = torch.full((3,), -100)
    output = model(**inputs, match_ids=match_ids)
    assert (output.loss > 0) == (process == 0)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
