"""SegFormer-B0 in PyTorch, with the names of Hugging Face transformers, so `deeplab_jax` can import its weights.

Attention runs in `scaled_dot_product_attention`, PyTorch's fastest. The decoder enlarges and concatenates the four
stages before it fuses them, as published.
"""

import torch
from torch import nn
from torch.nn import functional as F

_CHANNELS, _HEADS, _REDUCTIONS, _BLOCKS = (32, 64, 160, 256), (1, 2, 5, 8), (8, 4, 2, 1), (2, 2, 2, 2)
_MLP_RATIO, _DECODER = 4, 256
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def _names(**modules: nn.Module) -> nn.Module:
    """A module that only holds others, for the names of their parameters."""
    holder = nn.Module()
    for name, module in modules.items():
        holder.add_module(name, module)
    return holder


def _as_map(x, height: int, width: int):
    """(N, pixels, channels) to (N, channels, height, width)."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, height, width)


def _as_tokens(x):
    return x.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention to reduced keys and values, and Mix-FFN, each after LayerNorm and with a shortcut."""

    def __init__(self, channels: int, heads: int, reduction: int, drop_path: float):
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.layer_norm_1, self.layer_norm_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        attention = {name: nn.Linear(channels, channels) for name in ("query", "key", "value")}
        self.reduction = reduction
        if reduction > 1:
            attention |= {
                "sr": nn.Conv2d(channels, channels, reduction, reduction),
                "layer_norm": nn.LayerNorm(channels),
            }
        self.attention = _names(self=_names(**attention), output=_names(dense=nn.Linear(channels, channels)))
        hidden = _MLP_RATIO * channels
        self.mlp = _names(
            dense1=nn.Linear(channels, hidden),
            dwconv=_names(dwconv=nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)),
            dense2=nn.Linear(hidden, channels),
        )

    def forward(self, x, height: int, width: int):
        """Returns tokens of the shape of `x`."""
        x = x + self._drop(self._attend(self.layer_norm_1(x), height, width))
        return x + self._drop(self._mix(self.layer_norm_2(x), height, width))

    def _attend(self, x, height, width):
        layers, reduced = self.attention.self, x
        if self.reduction > 1:
            reduced = layers.layer_norm(_as_tokens(layers.sr(_as_map(x, height, width))))
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((layers.query, x), (layers.key, reduced), (layers.value, reduced))
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.attention.output.dense(attended)

    def _mix(self, x, height, width):
        x = self.mlp.dwconv.dwconv(_as_map(self.mlp.dense1(x), height, width))
        return self.mlp.dense2(F.gelu(_as_tokens(x)))

    def _drop(self, x):
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x * (x.new_empty((x.shape[0], 1, 1)).bernoulli_(keep) / keep)


class SegFormer(nn.Module):
    """The whole network, from images (N, 3, H, W) of range 0-255 to logits (N, classes, H, W)."""

    def __init__(self, classes: int):
        super().__init__()
        embeddings, blocks, norms, inputs = [], [], [], 3
        rates = iter(torch.linspace(0, 0.1, sum(_BLOCKS)).tolist())
        for stage, channels in enumerate(_CHANNELS):
            window, stride = (7, 4) if stage == 0 else (3, 2)
            projection = nn.Conv2d(inputs, channels, window, stride, window // 2)
            embeddings.append(_names(proj=projection, layer_norm=nn.LayerNorm(channels)))
            shape = (channels, _HEADS[stage], _REDUCTIONS[stage])
            blocks.append(nn.ModuleList([Block(*shape, next(rates)) for _ in range(_BLOCKS[stage])]))
            norms.append(nn.LayerNorm(channels))
            inputs = channels
        encoder = {"patch_embeddings": embeddings, "block": blocks, "layer_norm": norms}
        self.segformer = _names(encoder=_names(**{name: nn.ModuleList(items) for name, items in encoder.items()}))
        self.decode_head = _names(
            linear_c=nn.ModuleList([_names(proj=nn.Linear(channels, _DECODER)) for channels in _CHANNELS]),
            linear_fuse=nn.Conv2d(4 * _DECODER, _DECODER, 1, bias=False),
            batch_norm=nn.BatchNorm2d(_DECODER),
            classifier=nn.Conv2d(_DECODER, classes, 1),
        )
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        """Returns logits at the images' size."""
        encoder, head, x, stages = self.segformer.encoder, self.decode_head, (images - self.mean) / self.std, []
        for embedding, blocks, norm in zip(encoder.patch_embeddings, encoder.block, encoder.layer_norm, strict=True):
            x = embedding.proj(x)
            height, width = x.shape[2:]
            x = embedding.layer_norm(_as_tokens(x))
            for block in blocks:
                x = block(x, height, width)
            x = _as_map(norm(x), height, width)
            stages.append(x)
        enlarged = [
            _enlarge(_as_map(linear.proj(_as_tokens(x)), *x.shape[2:]), stages[0].shape[2:])
            for x, linear in zip(stages, head.linear_c, strict=True)
        ]
        x = F.relu(head.batch_norm(head.linear_fuse(torch.cat(enlarged[::-1], 1))))
        return _enlarge(head.classifier(self.dropout(x)), images.shape[2:])


def _enlarge(x, size):
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
