"""Parameter groups and schedules."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from evle.engine import muon
from evle.engine.muon import Muon, orthogonalize
from evle.engine.optim import OptimConfig, build_optimizer, build_schedule, lr_share, num_warmup_steps
from evle.errors import ConfigError
from evle.models.vle import VLEConfig, VLEForVQA


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.experts = nn.ParameterDict(
            {"up_proj": nn.Parameter(torch.zeros(2, 3, 2)), "up_proj_bias": nn.Parameter(torch.zeros(2, 3))}
        )
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.head = nn.Linear(2, 2)


def settings(model, optimizer):
    """name -> (learning rate, weight decay)"""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (pytest.approx(group["lr"]), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_matrices_decay_and_vectors_biases_and_norms_do_not():
    model = Parts()
    found = settings(model, build_optimizer(model, OptimConfig(lr=1.0, weight_decay=0.1)))
    decaying = {name for name, (_, decay) in found.items() if decay}
    assert decaying == {"image.weight", "experts.up_proj", "head.weight"}
    assert found.keys() == dict(model.named_parameters()).keys() - {"frozen"}


def test_new_parameters_and_patterns_multiply_the_learning_rate():
    model = Parts()
    config = OptimConfig(lr=1.0, lr_mult=10, lr_mult_patterns={r"^head": 5, "weight$": 2})
    found = settings(model, build_optimizer(model, config, new_parameters={"head.weight", "cls_token"}))
    rates = {name: rate for name, (rate, _) in found.items()}
    assert rates["head.weight"] == 50  # new x10, and the first pattern that matches: x5
    assert rates["head.bias"] == 5
    assert rates["image.weight"] == 2
    assert rates["cls_token"] == 10
    assert rates["temperature"] == 1


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"'hed' matches no parameter; did you mean 'head'"):
        build_optimizer(Parts(), OptimConfig(lr_mult_patterns={"hed": 2}))


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="all are frozen"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 4 steps of warm-up out of 8: 1/4 .. 4/4, then what is left of the 4 others.
        ({"schedule": "linear", "warmup": 0.5}, [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "warmup": 4, "power": 2}, [0.25, 0.5, 0.75, 1, 1, 0.5625, 0.25, 0.0625]),
        ({"schedule": "linear", "warmup": 4, "min_lr": 0.2}, [0.25, 0.5, 0.75, 1, 1, 0.8, 0.6, 0.4]),
        ({"schedule": "constant", "warmup": 2}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
        # half of a cosine: (1 + cos(pi k / 8)) / 2
        ({"schedule": "cosine", "warmup": 0}, [1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
    ],
)
def test_the_schedule_goes_as_worked_out_by_hand(options, expected):
    config = OptimConfig(**options)
    assert [lr_share(step, config, num_steps=8) for step in range(8)] == pytest.approx(expected, abs=1e-4)


def test_the_schedule_sets_each_groups_own_rate():
    model = Parts()
    config = OptimConfig(lr=2.0, lr_mult=10, warmup=2)
    optimizer = build_optimizer(model, config, new_parameters={"head.weight"})
    schedule = build_schedule(optimizer, config, num_steps=4)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([1.0, 10.0])
    optimizer.step()
    schedule.step()
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([2.0, 20.0])


def test_warmup_is_a_share_below_one_and_a_number_of_steps_from_one():
    assert num_warmup_steps(OptimConfig(warmup=0.1), num_steps=200) == 20
    assert num_warmup_steps(OptimConfig(warmup=1), num_steps=200) == 1
    assert num_warmup_steps(OptimConfig(warmup=500), num_steps=200) == 200


def test_the_rate_follows_the_time_where_that_is_ahead_of_the_steps():
    """In the 45 steps that the time holds, of 100,000 that bound them, the rate rises and falls."""
    config = OptimConfig(schedule="cosine", warmup=0.1)
    shares = [lr_share(step, config, num_steps=100_000, pace=step / 45) for step in range(46)]
    assert max(shares) > 0.99
    assert shares[2] < 0.5
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert shares[-1] == 0
    assert all(0 <= share <= 1 for share in shares)
    in_steps = OptimConfig(schedule="linear", warmup=10)
    shares = [lr_share(step, in_steps, num_steps=100_000, pace=step / 45) for step in range(45)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])  # the steps that were asked for
    behind = [lr_share(step, config, num_steps=50, pace=step / 60) for step in range(50)]
    assert behind == [lr_share(step, config, num_steps=50) for step in range(50)]  # a bound in time that is not reached


def test_impossible_settings_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        OptimConfig.build({"lr": -1, "wamup": 0.1, "schedule": "sine"}, "recipe.yaml")
    assert all(word in str(caught.value) for word in ("lr", "wamup", "did you mean", "warmup", "schedule"))
    with pytest.raises(ConfigError, match="no regular expression"):
        OptimConfig.build({"no_decay": ["("]}, "recipe.yaml")


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 3)])

    def forward(self, inputs):
        return self.layers[1](self.layers[0](inputs).tanh()).square().mean()


def train_muon(steps, resume_at=None):
    torch.manual_seed(0)
    model = TwoLayers()
    config = OptimConfig(lr=0.01, muon=(r"layers\.",), muon_lr=0.02, weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    inputs = torch.randn(5, 3)
    for step in range(steps):
        if step == resume_at:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(model, config)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        model(inputs).backward()
        optimizer.step()
    return model


def test_muon_moves_the_named_matrices_and_adamw_the_rest():
    torch.manual_seed(0)
    model = TwoLayers()
    matrices = [layer.weight for layer in model.layers]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([layer.bias for layer in model.layers], lr=0.01, betas=(0.9, 0.98), weight_decay=0)
    inputs = torch.randn(5, 3)
    for _ in range(3):
        model.zero_grad()
        model(inputs).backward()
        muon.step()
        adamw.step()
    for ours, plain in zip(train_muon(3).parameters(), model.parameters()):
        torch.testing.assert_close(ours, plain, rtol=0, atol=4e-3)  # torch's Muon rounds to bf16, three steps of 0.02


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4, 6), (2, 4, 12), (2, 12, 4)])
def test_orthogonalized_matrices_keep_their_singular_vectors_and_lose_their_values(shape):
    torch.manual_seed(0)
    stack = torch.randn(shape)
    left, _, right = torch.linalg.svd(stack, full_matrices=False)
    values = (left.mT @ orthogonalize(stack) @ right.mT).diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(orthogonalize(stack)[1], orthogonalize(stack[1]))


def test_orthogonalized_matrices_in_bfloat16_are_near_those_in_float32(monkeypatch):
    torch.manual_seed(0)
    matrix = torch.zeros(48, 192)
    matrix[:3] = torch.randn(3, 192)  # most singular values are zero
    exact = orthogonalize(matrix)
    monkeypatch.setattr(muon, "resolve_precision", lambda precision, device: "bf16")
    assert (orthogonalize(matrix) - exact).norm() < 0.05 * exact.norm()


def test_muon_moves_each_matrix_of_a_stack_and_no_bias_of_one():
    torch.manual_seed(0)
    model = Parts()
    nn.init.normal_(model.experts["up_proj"])
    alone = nn.Parameter(model.experts["up_proj"][1].detach().clone())
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.1, muon=("experts",)))
    assert [len(group["params"]) for group in optimizer.param_groups if "momentum" in group] == [1]
    model.experts["up_proj"].grad = torch.randn(2, 3, 2)
    alone.grad = model.experts["up_proj"].grad[1].clone()
    Muon([{"params": [alone], "lr": 0.1, "weight_decay": 0.1}]).step()
    optimizer.step()
    torch.testing.assert_close(model.experts["up_proj"][1], alone)


def test_muon_moves_a_kernel_as_the_matrix_of_its_filters():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn_like(kernel)
    matrix.grad = kernel.grad.flatten(1).clone()
    for parameter in (kernel, matrix):
        Muon([{"params": [parameter], "lr": 0.1, "weight_decay": 0.1}]).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_muon_resumes_from_its_state():
    for straight, resumed in zip(train_muon(4).parameters(), train_muon(4, resume_at=2).parameters()):
        torch.testing.assert_close(straight, resumed, rtol=0, atol=0)


def test_muon_for_no_matrix_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.muon: blocks matches no matrix of the model"):
        build_optimizer(TwoLayers(), OptimConfig(muon=("blocks",)))


def test_vles_released_recipe_has_three_groups_by_name():
    """lr_mult_cross_modal 5 and lr_mult_head 50 of the release: a parameter's name says to which group it belongs."""
    model = VLEForVQA(VLEConfig.from_preset("vle-tiny", num_labels=3))
    config = OptimConfig(lr=1e-5, weight_decay=0.01, lr_mult_patterns={"cross_modal": 5, "vqa_classifier": 50})
    found = settings(model, build_optimizer(model, config))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    rates = Counter()
    for name, (lr, decay) in found.items():
        expected = 5e-5 if "cross_modal" in name else 5e-4 if "vqa_classifier" in name else 1e-5
        assert lr == expected, name
        assert decay == (0.0 if is_vector(name) else 0.01), name
        rates[expected] += 1
    assert len(rates) == 3
    assert rates[5e-4] == 6  # two linear layers and a norm
    # By the last step but one of ten after two of warm-up the rates have fallen together, linearly to 0.
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, OptimConfig(lr=1e-5, warmup=0.2), 10)
    for _ in range(9):
        optimizer.step()
        schedule.step()
    assert sorted({round(group["lr"] / 1e-5, 6) for group in optimizer.param_groups}) == [0.125, 0.625, 6.25]


def is_vector(name: str) -> bool:
    """Biases, the [CLS] of the image, and norms, of which two do not bear the name."""
    is_norm = "norm" in name.lower() or "layrnorm" in name or name == "vqa_classifier.1.weight"
    return is_norm or name.endswith(("bias", "class_embedding"))
