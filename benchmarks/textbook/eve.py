"""EVE as a textbook would write it: `nn.MultiheadAttention`, `nn.Conv2d`, `nn.TransformerEncoderLayer`, and a loop over
experts that selects each expert's tokens, as transformers' stock mixture-of-experts models do.

Parameters are views of our model's, so that both compute the same and the weights are in memory once.

B batch, N patches, P image tokens, T text tokens, S = P + T, D width, E experts, K experts per token.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evle.models.contrast import ContrastHead
from evle.models.eve import EVEForPreTraining, EVEForRetrieval, EVEForVQA, EVEModel
from evle.models.eve.modeling import DropPath, EVEAttention, EVELayer
from evle.models.eve.pretraining import EVEPixelDecoder, sincos_positions
from evle.models.eve.routing import EVEExperts, FeedForward, HardRouter, SoftRouter


def shared(tensor: Tensor) -> nn.Parameter:
    """A parameter that reads the memory of `tensor` and has its own gradient."""
    return nn.Parameter(tensor.detach())


def share_module(stock: nn.Module, ours: nn.Module) -> nn.Module:
    """`stock` with the weights of `ours`, which has the same names."""
    for name, parameter in ours.named_parameters(recurse=False):
        setattr(stock, name, shared(parameter))
    return stock


def linear(ours: nn.Linear) -> nn.Module:
    return share_module(nn.Linear(1, 1, bias=ours.bias is not None), ours)


def layer_norm(ours: nn.LayerNorm) -> nn.Module:
    return share_module(nn.LayerNorm(ours.normalized_shape, eps=ours.eps), ours)


def attention(ours: EVEAttention) -> nn.MultiheadAttention:
    """torch's own attention; its key bias, which EVE does not have, is 0."""
    width = ours.proj.in_features
    stock = nn.MultiheadAttention(width, width // ours.head_dim, batch_first=True, device="meta")
    stock.in_proj_weight = shared(ours.qkv.weight)
    stock.in_proj_bias = nn.Parameter(
        torch.cat([ours.q_bias, torch.zeros_like(ours.q_bias), ours.v_bias]).detach().clone()
    )
    stock.out_proj.weight, stock.out_proj.bias = shared(ours.proj.weight), shared(ours.proj.bias)
    return stock


class QuickGELU(nn.Module):
    """As CLIP's code spells it."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * torch.sigmoid(1.702 * hidden)


def activation(name: str) -> nn.Module:
    return QuickGELU() if name == "quick_gelu" else nn.GELU()


def feed_forward(ours: FeedForward, act: str) -> nn.Sequential:
    return nn.Sequential(linear(ours.fc1), activation(act), linear(ours.fc2))


class HardFeedForward(nn.Module):
    """One LayerNorm and feed-forward per modality."""

    def __init__(self, ours: HardRouter, act: str):
        super().__init__()
        self.image_norm, self.text_norm = layer_norm(ours.image_norm), layer_norm(ours.text_norm)
        self.image, self.text = feed_forward(ours.image, act), feed_forward(ours.text, act)

    def forward(self, hidden: Tensor, num_image: int, real: Tensor | None) -> tuple[Tensor, None]:
        image, text = hidden[:, :num_image], hidden[:, num_image:]
        return torch.cat([self.image(self.image_norm(image)), self.text(self.text_norm(text))], dim=1), None


class MixtureOfExperts(nn.Module):
    """Top-K routing by a loop over experts."""

    def __init__(self, ours: SoftRouter, act: str):
        super().__init__()
        self.norm = layer_norm(ours.norm)
        self.image_vector, self.text_vector = shared(ours.image_vector), shared(ours.text_vector)
        self.gate = linear(ours.gate)
        self.top_k = ours.config.num_experts_per_tok
        self.experts = nn.ModuleList(experts(ours.experts, act))

    def forward(self, hidden: Tensor, num_image: int, real: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, width = hidden.shape
        is_text = (torch.arange(length) >= num_image)[:, None]
        states = self.norm(hidden) + torch.where(is_text, self.text_vector, self.image_vector)
        states = states.view(batch * length, width)
        with torch.autocast("cpu", enabled=False):
            gates = F.linear(states.float(), self.gate.weight).softmax(dim=-1)  # (B S, E)
        weights, chosen = gates.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        output = torch.zeros_like(states)
        for number, expert in enumerate(self.experts):
            token, choice = torch.where(chosen == number)
            result = expert(states[token]) * weights[token, choice, None]
            output.index_add_(0, token, result.to(output.dtype))
        counted = torch.ones_like(gates[:, 0]) if real is None else real.flatten().to(gates.dtype)
        wins = F.one_hot(chosen[:, 0], len(self.experts)) * counted[:, None]
        share, mean = wins.sum(dim=0) / counted.sum(), (gates * counted[:, None]).sum(dim=0) / counted.sum()
        return output.view(batch, length, width), len(self.experts) * (share * mean).sum()


def experts(ours: EVEExperts, act: str) -> Iterator[nn.Sequential]:
    for number in range(ours.num_experts):
        up, down = nn.Linear(1, 1), nn.Linear(1, 1)
        up.weight, up.bias = shared(ours.up_proj[number]), shared(ours.up_proj_bias[number])
        down.weight, down.bias = shared(ours.down_proj[number]), shared(ours.down_proj_bias[number])
        yield nn.Sequential(up, activation(act), down)


class Block(nn.Module):
    """Pre-LN attention and feed-forward with LayerScale and stochastic depth."""

    def __init__(self, ours: EVELayer, act: str):
        super().__init__()
        self.attention_norm, self.attention = layer_norm(ours.attention_norm), attention(ours.attention)
        self.attention_scale = shared(ours.attention_scale)
        deep = ours.feed_forward
        self.feed_forward = HardFeedForward(deep, act) if isinstance(deep, HardRouter) else MixtureOfExperts(deep, act)
        self.feed_forward_scale = shared(ours.feed_forward_scale)
        self.drop_path = DropPath(ours.drop_path.rate)

    def forward(self, hidden: Tensor, real: Tensor | None, num_image: int) -> tuple[Tensor, Tensor | None]:
        normed = self.attention_norm(hidden)
        padding = None if real is None else ~real
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=padding, need_weights=False)
        hidden = hidden + self.drop_path(self.attention_scale * attended)
        fed, balance = self.feed_forward(hidden, num_image, real)
        return hidden + self.drop_path(self.feed_forward_scale * fed), balance


class Encoder(nn.Module):
    """`EVEModel` on stock modules."""

    def __init__(self, ours: EVEModel):
        super().__init__()
        config, image, text = ours.config, ours.image_embedding, ours.text_embedding
        assert not config.stem_channels, "convolutions are not written here"
        size, width = config.patch_size, config.hidden_size
        self.patch = nn.Conv2d(config.num_channels, width, size, size)
        self.patch.weight = shared(image.patch.weight.view(width, config.num_channels, size, size))
        self.patch.bias = shared(image.patch.bias)
        self.cls_token, self.image_position = shared(image.cls_token), shared(image.position)
        self.image_type, self.text_type = shared(image.type_vector), shared(text.type_vector)
        self.word = nn.Embedding(1, 1)
        self.word.weight = shared(text.word.weight)
        self.word_norm, self.dropout = layer_norm(text.norm), nn.Dropout(config.hidden_dropout_prob)
        self.text_position = shared(text.position)
        self.pre_norm, self.norm = layer_norm(ours.pre_norm), layer_norm(ours.norm)
        self.blocks = nn.ModuleList(Block(layer, config.hidden_act) for layer in ours.layers)

    def embed_image(self, pixels: Tensor, visible: Tensor | None) -> Tensor:
        """As MAE: all patches are projected, then the visible ones (B, V) are selected."""
        patches = self.patch(pixels).flatten(2).transpose(1, 2) + self.image_position[1:]
        if visible is not None:
            patches = patches.gather(1, visible[..., None].expand(-1, -1, patches.shape[-1]))
        first = (self.cls_token + self.image_position[0]).expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.image_type

    def embed_text(self, ids: Tensor) -> Tensor:
        return self.dropout(self.word_norm(self.word(ids))) + self.text_position[: ids.shape[1]] + self.text_type

    def forward(
        self, pixels: Tensor | None, ids: Tensor | None, mask: Tensor | None = None, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States of image tokens (B, P, D) and text tokens (B, T, D), and the balance loss."""
        parts = [] if pixels is None else [self.embed_image(pixels, visible)]
        num_image = parts[0].shape[1] if parts else 0
        real = None
        if ids is not None:
            parts.append(self.embed_text(ids))
            if mask is not None:
                real = torch.cat([mask.new_ones(len(ids), num_image), mask], dim=1).bool()
        hidden = self.pre_norm(torch.cat(parts, dim=1))
        balances = []
        for block in self.blocks:
            hidden, balance = block(hidden, real, num_image)
            balances += [] if balance is None else [balance]
        hidden = self.norm(hidden)
        return hidden[:, :num_image], hidden[:, num_image:], torch.stack(balances).mean()


def sequential(ours: nn.Sequential) -> nn.Sequential:
    """A head of stock modules that shares its weights."""
    known = {nn.Linear: linear, nn.LayerNorm: layer_norm}
    return nn.Sequential(*(known[type(each)](each) if type(each) in known else each for each in ours))


class VQA(nn.Module):
    """`EVEForVQA`."""

    def __init__(self, ours: EVEForVQA):
        super().__init__()
        self.encoder, self.classifier = Encoder(ours.eve), sequential(ours.classifier)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(self.encoder(pixels, ids, mask)[1][:, 0])
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum") / len(labels)
        return logits, loss


class Retrieval(nn.Module):
    """`EVEForRetrieval` as ALBEF's code trains it: matching runs the true pairs, then the hard negatives."""

    def __init__(self, ours: EVEForRetrieval):
        super().__init__()
        self.encoder, self.matching = Encoder(ours.eve), linear(ours.matching)
        head: ContrastHead = ours.contrast
        self.image_projection, self.text_projection = linear(head.image_projection), linear(head.text_projection)
        self.temperature = shared(head.temperature)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor, negatives: tuple[Tensor, Tensor] | None) -> Tensor:
        """The loss without load balancing; `negatives` are a text for each image and an image for each text, drawn by
        similarity if None."""
        image, text = self.encoder(pixels, None)[0], self.encoder(None, ids, mask)[1]
        with torch.autocast("cpu", enabled=False):
            image_vectors = F.normalize(self.image_projection(image[:, 0].float()), dim=-1)
            text_vectors = F.normalize(self.text_projection(text[:, 0].float()), dim=-1)
            similarity = image_vectors @ text_vectors.T / self.temperature
        own = torch.arange(len(ids))
        contrast = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
        if negatives is None:
            with torch.no_grad():
                weights = [each.softmax(dim=1).fill_diagonal_(0) + 1e-8 for each in (similarity, similarity.T)]
                negatives = tuple(torch.multinomial(each, 1)[:, 0] for each in weights)
        texts, images = negatives
        true = self.encoder(pixels, ids, mask)[1]
        false = self.encoder(
            torch.cat([pixels, pixels[images]]), torch.cat([ids[texts], ids]), torch.cat([mask[texts], mask])
        )[1]
        logits = self.matching(torch.cat([true[:, 0], false[:, 0]]))
        labels = (torch.arange(len(logits)) < len(ids)).long()
        return contrast + F.cross_entropy(logits.float(), labels)


class PixelDecoder(nn.Module):
    """`EVEPixelDecoder` as MAE's decoder, of torch's own encoder layers."""

    def __init__(self, ours: EVEPixelDecoder, heads: int, act: str):
        super().__init__()
        self.embed, self.norm, self.pixels = linear(ours.embed), layer_norm(ours.norm), linear(ours.pixels)
        self.mask_token = shared(ours.mask_token)
        self.layers = nn.ModuleList()
        for layer in ours.layers:
            width, inner = layer.feed_forward.fc1.in_features, layer.feed_forward.fc1.out_features
            stock = nn.TransformerEncoderLayer(
                width, heads, inner, 0.0, activation(act), ours.norm.eps, batch_first=True, norm_first=True
            )
            stock.self_attn = attention(layer.attention)
            stock.norm1, stock.norm2 = layer_norm(layer.attention_norm), layer_norm(layer.feed_forward_norm)
            stock.linear1, stock.linear2 = linear(layer.feed_forward.fc1), linear(layer.feed_forward.fc2)
            self.layers.append(stock)

    def forward(self, image: Tensor, order: Tensor, side: int) -> Tensor:
        """As MAE: mask tokens are appended, all tokens are put back in their order, and every token is decoded."""
        tokens = self.embed(image)
        masked = self.mask_token.expand(len(tokens), order.shape[1] + 1 - tokens.shape[1], -1).to(tokens.dtype)
        patches = torch.cat([tokens[:, 1:], masked], dim=1)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, patches.shape[-1])
        patches = patches.gather(1, back) + sincos_positions(side, side, patches.shape[-1], patches.device)
        hidden = torch.cat([tokens[:, :1].float(), patches], dim=1)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.pixels(self.norm(hidden))[:, 1:]


class PreTraining(nn.Module):
    """`EVEForPreTraining` with masked signals alone; the vocabulary head reads every token, as BERT's."""

    def __init__(self, ours: EVEForPreTraining):
        super().__init__()
        config = ours.config
        self.encoder, self.words = Encoder(ours.eve), sequential(ours.mlm_head)
        self.decoder = PixelDecoder(ours.decoder, config.decoder_num_heads, config.hidden_act)
        self.patch_size, self.balance_weight = config.patch_size, config.router_aux_loss_coef

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_mask: Tensor,
        masked_input_ids: Tensor,
        mlm_labels: Tensor,
    ) -> Tensor:
        order = image_mask.int().argsort(dim=1, stable=True)
        num_visible = int((~image_mask[0]).sum())
        image, _, image_balance = self.encoder(pixel_values, input_ids, attention_mask, order[:, :num_visible])
        size, side = self.patch_size, pixel_values.shape[-1] // self.patch_size
        predicted = self.decoder(image, order, side)
        target = pixel_values.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3)
        error = (predicted.float() - target.flatten(1, 2)).square().mean(dim=-1)
        pixels = (error * image_mask).sum() / image_mask.sum()
        _, text, text_balance = self.encoder(pixel_values, masked_input_ids, attention_mask)
        logits = self.words(text)
        words = F.cross_entropy(logits.float().flatten(0, 1), mlm_labels.flatten(), ignore_index=-100)
        return pixels + words + self.balance_weight * (image_balance + text_balance) / 2
