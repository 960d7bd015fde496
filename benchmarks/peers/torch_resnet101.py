"""The network of `deeplabv3plus_resnet101_voc` in PyTorch: DeepLabv3+ with the ResNet-101 of research/deeplab.

The stem has three 3x3 convolutions, the last unit of a stage is strided, the rates of the last stage are multiplied by
1, 2 and 4, and the low-level features are the residual branch of the second unit. All layers are called in the order in
which ours are, so a test can copy the parameters one after another.
"""

import torch
from torch import nn
from torch.nn import functional as F

_STAGES = ((64, 3), (128, 4), (256, 23), (512, 3))
_MULTI_GRID = (1, 2, 4)
_RATES = (6, 12, 18)


class ConvNorm(nn.Sequential):
    """Convolution without bias, padded on both sides, and BatchNorm."""

    def __init__(self, inputs: int, features: int, kernel: int = 1, stride: int = 1, rate: int = 1):
        padding = rate * (kernel // 2)
        super().__init__(
            nn.Conv2d(inputs, features, kernel, stride, padding, rate, bias=False), nn.BatchNorm2d(features, eps=1e-5)
        )


class Bottleneck(nn.Module):
    """1x1, strided or atrous 3x3, 1x1; ReLU after the sum with the shortcut."""

    def __init__(self, inputs: int, features: int, stride: int, rate: int):
        super().__init__()
        self.stride = stride
        self.conv1 = ConvNorm(inputs, features)
        self.conv2 = ConvNorm(features, features, 3, stride, rate)
        self.conv3 = ConvNorm(features, 4 * features)
        self.shortcut = None if inputs == 4 * features else ConvNorm(inputs, 4 * features, stride=stride)

    def forward(self, x):
        """Returns the output, and the residual branch before the sum."""
        residual = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride] if self.shortcut is None else self.shortcut(x)
        return F.relu(shortcut + residual), residual


class DeepLab(nn.Module):
    """The whole network, from images (N, 3, H, W) of range 0-255 to logits (N, classes, H, W); output stride 16."""

    def __init__(self, classes: int):
        super().__init__()
        self.stem = nn.ModuleList([ConvNorm(3, 64, 3, 2), ConvNorm(64, 64, 3), ConvNorm(64, 128, 3)])
        self.units, inputs = nn.ModuleList(), 128
        for stage, (features, count) in enumerate(_STAGES):
            for unit in range(count):
                stride = 2 if stage < 2 and unit == count - 1 else 1
                rate = 2 * _MULTI_GRID[unit] if stage == 3 else 1
                self.units.append(Bottleneck(inputs, features, stride, rate))
                inputs = 4 * features
        self.branches = nn.ModuleList([ConvNorm(2048, 256), *(ConvNorm(2048, 256, 3, rate=rate) for rate in _RATES)])
        self.pooling = ConvNorm(2048, 256)
        self.projection = ConvNorm(5 * 256, 256)
        self.dropout = nn.Dropout(0.1)
        self.low_level = ConvNorm(256, 48)
        self.refine = nn.ModuleList([ConvNorm(256 + 48, 256, 3), ConvNorm(256, 256, 3)])
        self.classifier = nn.Conv2d(256, classes, 1)

    def forward(self, images):
        """Returns logits at the images' size."""
        x = (images - 127.5) / 127.5
        for layer in self.stem:
            x = F.relu(layer(x))
        x = F.max_pool2d(x, 3, 2, 1)
        for i, unit in enumerate(self.units):
            x, residual = unit(x)
            if i == 1:
                low_level = residual
        size = x.shape[2:]
        branches = [F.relu(branch(x)) for branch in self.branches]
        pooled = F.relu(self.pooling(x.mean((2, 3), keepdim=True))).expand(-1, -1, *size)
        x = self.dropout(F.relu(self.projection(torch.cat([*branches, pooled], 1))))
        low_level = F.relu(self.low_level(low_level))
        x = torch.cat([enlarge(x, low_level.shape[2:]), low_level], 1)
        for layer in self.refine:
            x = F.relu(layer(x))
        return enlarge(self.classifier(x), images.shape[2:])


def enlarge(x, size):
    """Upsamples bilinearly with aligned corners."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
