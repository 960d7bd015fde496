"""The KerasCV guide's network in PyTorch: keras_cv 0.9's DeepLabV3Plus with ResNet50V2, layer by layer.

Strides are in the last block of each stage, padding is TensorFlow's, and the order of operations is KerasCV's, with the
classifier after the last upsampling. `logits_first` puts it before, which computes the same function.
"""

import torch
from torch import nn
from torch.nn import functional as F


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: as little as needed, the odd pixel after."""

    def forward(self, x):
        """Pads inside the convolution if both sides are equal, before it otherwise."""
        (kernel, stride, rate), pads = (self.kernel_size[0], self.stride[0], self.dilation[0]), []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + rate * (kernel - 1) + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:
            return F.conv2d(x, self.weight, self.bias, stride, (pads[2], pads[0]), rate)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, stride, 0, rate)


def conv_norm_relu(inputs: int, features: int, kernel: int = 1, rate: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm with Keras's defaults, ReLU."""
    return nn.Sequential(
        SameConv(inputs, features, kernel, dilation=rate, bias=False),
        nn.BatchNorm2d(features, eps=1e-3, momentum=0.01),
        nn.ReLU(inplace=True),
    )


class Block(nn.Module):
    """Pre-activation bottleneck."""

    def __init__(self, inputs: int, features: int, stride: int, project: bool):
        super().__init__()

        def norm(channels):
            return nn.BatchNorm2d(channels, eps=1.001e-5, momentum=0.01)

        self.stride = stride
        self.preactivation = nn.Sequential(norm(inputs), nn.ReLU(inplace=True))
        self.shortcut = SameConv(inputs, 4 * features, 1, stride) if project else None
        self.residual = nn.Sequential(
            SameConv(inputs, features, 1, bias=False),
            norm(features),
            nn.ReLU(inplace=True),
            SameConv(features, features, 3, stride, bias=False),
            norm(features),
            nn.ReLU(inplace=True),
            SameConv(features, 4 * features, 1),
        )

    def forward(self, x):
        """Returns the sum of shortcut and residual."""
        preactivation = self.preactivation(x)
        if self.shortcut is not None:
            shortcut = self.shortcut(preactivation)
        else:
            shortcut = F.max_pool2d(x, 1, self.stride) if self.stride > 1 else x
        return shortcut + self.residual(preactivation)


class DeepLab(nn.Module):
    """The whole network, from images (N, 3, H, W) of range 0-255 to logits (N, classes, H, W)."""

    def __init__(self, classes: int = 21, *, logits_first: bool = False):
        super().__init__()
        self.logits_first = logits_first
        self.stem = SameConv(3, 64, 7, 2)
        stages, inputs = [], 64
        for stage, (features, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
            blocks = []
            for block in range(count):
                stride = 2 if stage > 0 and block == count - 1 else 1
                blocks.append(Block(inputs, features, stride, project=block == 0))
                inputs = 4 * features
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.branches = nn.ModuleList(
            [conv_norm_relu(2048, 256), *(conv_norm_relu(2048, 256, 3, rate) for rate in (6, 12, 18))]
        )
        self.pooling = conv_norm_relu(2048, 256)
        self.projection = conv_norm_relu(5 * 256, 256)
        self.low_level = conv_norm_relu(256, 48)
        self.head = conv_norm_relu(256 + 48, 256)
        self.classifier = nn.Conv2d(256, classes, 1, bias=False)

    def forward(self, images):
        """Returns logits at the images' size."""
        x = self.stem(images / 255)
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, 2)
        low_level = x = self.stages[0](x)
        for stage in self.stages[1:]:
            x = stage(x)
        pooled = self.pooling(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        x = self.projection(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))
        x = torch.cat([enlarge(x, 8), self.low_level(low_level)], 1)
        x = self.head(x)
        return enlarge(self.classifier(x), 4) if self.logits_first else self.classifier(enlarge(x, 4))


def enlarge(x, factor: int):
    """Upsamples bilinearly with half-pixel centers."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
