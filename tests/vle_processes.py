"""What VLE's distributed tests run in two processes; a spawned process can import only a file with a plain name."""

import torch
from torch import Tensor

from evle.models.vle import VLEForPreTraining, VLEForRetrieval
from evle.models.vle.matching import matching_rows
from vle_models import batch, build, pretraining_batch


def pair_rows(model: VLEForRetrieval, inputs: dict[str, Tensor], ids: Tensor) -> tuple[Tensor, ...]:
    image = model.vle.encode_image(inputs["pixel_values"])
    text = model.vle.encode_text(inputs["input_ids"], inputs["attention_mask"])
    return matching_rows(model.vle, *inputs.values(), image, text, ids, None)


def check_negatives_across_processes(process: int) -> None:
    """Two processes with one pair each: the only negatives lie in the other one, whose text is longer or shorter."""
    model = build(VLEForRetrieval)
    whole = batch(2, 7)  # real lengths 7 and 5
    own = {name: rows[process : process + 1] for name, rows in whole.items()}
    own = {name: rows if rows.dim() == 4 else rows[:, : 7 - 2 * process] for name, rows in own.items()}

    image, text, mask, found = pair_rows(model, own, torch.tensor([process]))
    # In one process with both pairs, the rows are [image 0 1 with text 1 0, image 1 0 with text 0 1].
    expected = pair_rows(model, whole, torch.tensor([0, 1]))
    rows = [process, 2 + process]
    assert found.tolist() == [True]
    assert torch.allclose(image, expected[0][rows], atol=1e-5)
    assert torch.equal(mask, expected[2][rows])
    real = mask.bool()
    assert torch.allclose(text[real], expected[1][rows][real], atol=1e-5)

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
