"""EVE's feed-forwards: hard-routed by modality, soft-routed to experts, or shared (EVE, section 3.2).

The three modules have one interface, `(hidden (B, S, D), num_image, token_mask (B, S) or None) -> (output (B, S, D),
Routing or None)`. The first `num_image` of the S tokens are image tokens, the rest are text. `token_mask` is True for
real tokens; None means that all are real.

B batch, S tokens, D width, I feed-forward width, E experts, K experts per token, N routed tokens.
"""

from types import SimpleNamespace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward, use_experts_implementation

from evle import objectives
from evle.models.casts import cast_stack
from evle.models.dispatch import Experts, dispatched
from evle.models.eve.configuration import EVEConfig
from evle.models.even_rows import even_rows, evens_rows
from evle.models.grouped import even_layout, grouped_linear
from evle.models.plain import float_dtype, is_plain

MANY_TOKENS = 4096
"""From this number of tokens on, a CPU computes experts without gradients one after the other."""


class Routing(NamedTuple):
    """What one soft-routed block did with its tokens.

    `balance` is the load-balancing loss (scalar, with gradient). The other fields are for logs and have no gradient:
    `load` (E,) is the share of assignments that each expert received, `entropy` the mean entropy of the router in nats,
    and `dropped` the share of assignments lost to capacity. `image_load`, `text_load`, `image_entropy` and
    `text_entropy` are the same for the tokens of one modality (EVE, figure 6), 0 if there are none.
    """

    balance: Tensor
    load: Tensor
    entropy: Tensor
    dropped: Tensor
    image_load: Tensor
    text_load: Tensor
    image_entropy: Tensor
    text_entropy: Tensor


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), written as silu(1.702 x) / 1.702, which keeps one tensor less for the backward pass.

    As a product, x and its sigmoid are both kept, which is a tenth of all activations of EVE-Base.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        return F.silu(1.702 * hidden) / 1.702


def activation(name: str) -> nn.Module:
    """The activation of feed-forwards and experts: `quick_gelu`, or any of transformers' names."""
    return QuickGELU() if name == "quick_gelu" else ACT2FN[name]


class FeedForward(nn.Module):
    """Linear (D, I), activation, Linear (I, D)."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.act_fn = activation(hidden_act)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.act_fn(self.fc1(hidden)))


class SharedFeedForward(nn.Module):
    """One feed-forward for both modalities: the paper's ablation of the deep blocks (table 7)."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, hidden: Tensor, num_image: int, token_mask: Tensor | None) -> tuple[Tensor, None]:
        return self.feed_forward(self.norm(hidden)), None


class HardRouter(nn.Module):
    """One feed-forward with its own LayerNorm for image tokens, another for text tokens.

    The modalities are contiguous, so they are sliced, not masked; an absent modality costs nothing.
    """

    def __init__(self, config: EVEConfig):
        super().__init__()
        self.image_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.image = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.text_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.text = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, hidden: Tensor, num_image: int, token_mask: Tensor | None) -> tuple[Tensor, None]:
        if num_image == 0:
            return self.text(self.text_norm(hidden)), None
        if num_image == hidden.shape[1]:
            return self.image(self.image_norm(hidden)), None
        image = self.image(self.image_norm(hidden[:, :num_image]))
        text = self.text(self.text_norm(hidden[:, num_image:]))
        return torch.cat([image, text], dim=1), None


class _AutocastView(SimpleNamespace):
    """What transformers' grouped product reads of `EVEExperts`, with the weights in another precision."""


def _grouped_mm(experts: "EVEExperts", hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """transformers' grouped product under autocast, which `torch.nn.functional.grouped_mm` ignores."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return grouped_mm_experts_forward(experts, hidden, index, weights)
    dtype = torch.get_autocast_dtype(device)
    view = _AutocastView(
        num_experts=experts.num_experts,
        up_proj=cast_stack(experts.up_proj).to(dtype),
        up_proj_bias=experts.up_proj_bias.to(dtype),
        down_proj=cast_stack(experts.down_proj).to(dtype),
        down_proj_bias=experts.down_proj_bias.to(dtype),
        act_fn=experts.act_fn,
        has_gate=False,
        has_bias=True,
        has_post_expert_norm=False,
        is_transposed=False,
        _is_expert_parallel=experts._is_expert_parallel,
    )
    return grouped_mm_experts_forward(cast(nn.Module, view), hidden.to(dtype), index, weights)


def _dense(experts: "EVEExperts", hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Every expert for every token, weighted by 0 where it was not chosen: E / K times the work, and no shape depends
    on the values. This is the form in which a model is exported: memory is that of one expert, and each product has
    constant weights."""
    shares = weights.new_zeros(hidden.shape[0], experts.num_experts).scatter_add(1, index, weights)  # (N, E)
    output = torch.zeros_like(hidden)
    for expert in range(experts.num_experts):
        inner = experts.act_fn(F.linear(hidden, experts.up_proj[expert], experts.up_proj_bias[expert]))
        output = output + shares[:, expert : expert + 1] * F.linear(
            inner, experts.down_proj[expert], experts.down_proj_bias[expert]
        )
    return output.to(hidden.dtype)


EXPERTS_FUNCTIONS = ExpertsInterface()
EXPERTS_FUNCTIONS["grouped_mm"] = _grouped_mm
EXPERTS_FUNCTIONS["dense"] = _dense


@use_experts_implementation(experts_interface=EXPERTS_FUNCTIONS, has_gate=False, has_bias=True)
class EVEExperts(Experts):
    """E feed-forwards as stacked tensors; the cost grows with N x K and does not depend on E.

    `hidden` (N, D), `index` (N, K) experts of each token, `weights` (N, K) -> (N, D). This forward is the "eager"
    implementation; grouped_mm and batched_mm come from transformers, and dense is the one that is exported:
    `model.set_experts_implementation(name)`.
    """

    def __init__(self, config: EVEConfig):
        super().__init__()
        self.num_experts = config.num_experts
        width, inner = config.hidden_size, config.intermediate_size
        self.up_proj = nn.Parameter(torch.empty(self.num_experts, inner, width))
        self.up_proj_bias = nn.Parameter(torch.empty(self.num_experts, inner))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, inner))
        self.down_proj_bias = nn.Parameter(torch.empty(self.num_experts, width))
        self.act_fn = activation(config.hidden_act)

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        num_tokens, top_k = index.shape
        order = index.flatten().argsort(stable=True)  # (N K,) assignments, expert by expert
        counts = torch.bincount(index.flatten(), minlength=self.num_experts).tolist()
        if num_tokens >= MANY_TOKENS and hidden.device.type == "cpu" and not torch.is_grad_enabled():
            return self._one_by_one(hidden, weights, order, counts)
        sizes, rows_of = even_layout(counts, hidden)
        token = order.new_zeros(sum(sizes))  # (M,) of each row; added rows repeat token 0
        token[rows_of] = order // top_k
        states = grouped_linear(hidden[token], sizes, cast_stack(self.up_proj), self.up_proj_bias)
        results = grouped_linear(self.act_fn(states), sizes, cast_stack(self.down_proj), self.down_proj_bias)
        restored = torch.empty_like(order)
        restored[order] = rows_of
        output = results[restored].view(num_tokens, top_k, -1)
        return (output * weights[..., None]).sum(dim=1).to(hidden.dtype)

    def _one_by_one(self, hidden: Tensor, weights: Tensor, order: Tensor, counts: list[int]) -> Tensor:
        """The same numbers without gradients, holding the rows of one expert at a time: a fifth of the memory, which
        also takes less time where it is much."""
        output = torch.zeros_like(hidden)
        up, down = cast_stack(self.up_proj), cast_stack(self.down_proj)
        pads = evens_rows(hidden)
        for expert, assigned in enumerate(order.split(counts)):
            token = assigned // weights.shape[1]  # (n,)
            added = even_rows(len(token)) - len(token) if pads else 0
            states = F.linear(hidden[F.pad(token, (0, added))], up[expert], self.up_proj_bias[expert])
            result = F.linear(self.act_fn(states), down[expert], self.down_proj_bias[expert])[: len(token)]
            output.index_add_(0, token, (result * weights.flatten()[assigned, None]).to(output.dtype))
        return output


class SoftRouter(nn.Module):
    """One LayerNorm, a router, E experts: `sum_k g_k Expert_k(x + b_m)` with `g = softmax(W (x + b_m))`.

    b_m is a learned vector per modality. As in the released code the experts receive x + b_m, and the two kept gate
    values are renormalised to sum to 1, after the capacity cut. The router runs in float32.
    """

    def __init__(self, config: EVEConfig):
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.modality_routing:
            self.image_vector = nn.Parameter(torch.empty(config.hidden_size))
            self.text_vector = nn.Parameter(torch.empty(config.hidden_size))
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = EVEExperts(config)

    def forward(self, hidden: Tensor, num_image: int, token_mask: Tensor | None) -> tuple[Tensor, Routing]:
        batch, length, width = hidden.shape
        states = self.norm(hidden)
        if self.config.modality_routing:
            vectors = [self.image_vector.expand(num_image, -1), self.text_vector.expand(length - num_image, -1)]
            states = states + torch.cat(vectors)
        states = states.reshape(batch * length, width)
        is_text = (torch.arange(length, device=hidden.device) >= num_image).repeat(batch)
        if token_mask is None or self.config.pads_are_routed:
            output, routing = self.route(states, is_text)
        elif self.removes_padding(hidden.device):
            kept = token_mask.flatten().nonzero().squeeze(1)
            routed, routing = self.route(states[kept], is_text[kept])
            output = routed.new_zeros(batch * length, width).index_copy(0, kept, routed)
        else:
            output, routing = self.route(states, is_text, token_mask.flatten())
        return output.view(batch, length, width), routing

    def removes_padding(self, device: torch.device) -> bool:
        """Whether padding tokens are taken out before the experts, rather than given weights of 0.

        Taking them out saves work, but their number must be read (`objectives.is_eager_cpu`). A capacity depends on
        that number, so with a capacity it is always read.
        """
        return self.config.capacity_factor is not None or objectives.is_eager_cpu(device)

    def route(self, states: Tensor, is_text: Tensor, real: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Send each of the tokens (N, D) through its experts.

        `is_text` (N,) bool is False for image tokens. `real` (N,) bool is False for tokens that get an output of 0 and
        are not counted in the statistics; None means that all are real.
        """
        num_experts = self.config.num_experts
        with torch.autocast(states.device.type, enabled=False):
            logits = self.score(states)
            gates = logits.softmax(dim=-1)
        index = self.choose(logits)
        weights, kept = self.weigh(gates, index)
        if real is not None:
            weights = weights * real[:, None]
        output = dispatched(self.experts, states, index, weights.to(states.dtype))
        balance = objectives.balance(gates, index[:, 0], real)
        with torch.no_grad():
            counted = torch.ones_like(gates[:, 0]) if real is None else real.to(gates.dtype)
            load = _by_modality(counted, index, is_text, num_experts)  # (2, E)
            entropy = torch.special.entr(gates).sum(dim=-1) * counted
            tokens = torch.stack([(counted * ~is_text).sum(), (counted * is_text).sum()])
            entropies = torch.stack([(entropy * ~is_text).sum(), (entropy * is_text).sum()])
            dropped = torch.zeros_like(balance) if kept is None else 1 - kept.float().mean()
        image_load, text_load = load / load.sum(dim=1, keepdim=True).clamp(min=1)
        image_entropy, text_entropy = entropies / tokens.clamp(min=1)
        return output, Routing(
            balance=balance,
            load=load.sum(dim=0) / load.sum().clamp(min=1),
            entropy=entropies.sum() / tokens.sum().clamp(min=1),
            dropped=dropped.detach(),
            image_load=image_load,
            text_load=text_load,
            image_entropy=image_entropy,
            text_entropy=text_entropy,
        )

    def score(self, states: Tensor) -> Tensor:
        """Router logits (N, E), float32, of the tokens (N, D)."""
        if is_plain(self.gate):
            return F.linear(states.float(), self.gate.weight.float())
        logits: Tensor = self.gate(states.to(float_dtype(self.gate)))
        return logits.float()

    def choose(self, logits: Tensor) -> Tensor:
        """The experts (N, K) of each token, best first; in training the second may be sampled (`second_choice`)."""
        if self.config.num_experts_per_tok == 1:
            return logits.argmax(dim=-1, keepdim=True)
        with torch.no_grad():
            if not (self.training and self.config.second_choice == "sample"):
                return logits.topk(2, dim=-1).indices
            first = logits.argmax(dim=-1, keepdim=True)
            gumbel = -torch.empty_like(logits).exponential_().log()
            second = (logits + gumbel).scatter(1, first, float("-inf")).argmax(dim=-1, keepdim=True)
            return torch.cat([first, second], dim=1)

    def weigh(self, gates: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weights (N, K) of the chosen experts, and which assignments capacity keeps (N, K; None without one)."""
        chosen = gates.gather(1, index)
        capacity = self.config.expert_capacity(gates.shape[0])
        kept = None if capacity is None else within_capacity(index, capacity, self.config.num_experts)
        if kept is not None:
            chosen = chosen * kept
        if self.config.num_experts_per_tok == 1:
            return chosen, kept
        return chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(chosen.dtype).eps), kept


def _by_modality(counted: Tensor, index: Tensor, is_text: Tensor, num_experts: int) -> Tensor:
    """Assignments (2, E) of image tokens and of text tokens to experts, each token counted by `counted` (N,)."""
    cells = (index + num_experts * is_text[:, None]).flatten()
    counts = counted.new_zeros(2 * num_experts).scatter_add(0, cells, counted.repeat_interleave(index.shape[1]))
    return counts.view(2, num_experts)


def within_capacity(index: Tensor, capacity: int, num_experts: int) -> Tensor:
    """Which assignments (N, K) fit into the `capacity` slots of their expert, counted as in GShard.

    Slots are filled in the order of tokens, all first choices before any second choice.
    """
    taken = F.one_hot(index.T.flatten(), num_experts)  # (K N, E), first choices first
    position = (taken.cumsum(dim=0) * taken).sum(dim=-1)  # (K N,) counted from 1
    return (position <= capacity).view(index.shape[1], -1).T
