"""Google's MobileNetV2 DeepLabv3 networks, from float and 8-bit TFLite files.

Such a file is an export of research/deeplab's `mobilenet_v2` variant: MobileNetV2 up to its 320-feature unit, an ASPP
with a 1x1 branch and image pooling, no decoder, and bilinear resizing with aligned corners (research/deeplab,
`model.py`). The importer follows the graph from operator to operator, because tensor names are arbitrary and may be
missing. Every stride, rate, activation and padding must match our network.

The converter folded BatchNorm into the convolutions. A folded layer becomes a convolution and a BatchNorm that only
adds the bias.
"""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models.atrous import plan_units
from deeplab_jax.models.backbones.mobilenet_v2 import STAGES
from deeplab_jax.pretrained.network import PretrainedNetwork, model_config, variable_shapes, voc_or_numbered_labels
from deeplab_jax.pretrained.readers import tflite_file
from deeplab_jax.pretrained.readers.tflite_file import NO_ACTIVATION, RELU, RELU6, SAME_PADDING, VALID_PADDING
from deeplab_jax.pretrained.translate import Convention, translate

# A power of two close to slim's 0.001. In float32, 1 - epsilon + epsilon is exactly 1, so the BatchNorm of a folded
# layer divides by exactly 1.
_EPSILON = 2.0**-10

# Kernels of CONV_2D are OHWI, those of DEPTHWISE_CONV_2D 1HWC.
_TFLITE = Convention(
    separator="/",
    kernel="kernel",
    depthwise_kernel="kernel",
    bias="bias",
    norm=("scale", "bias", "mean", "var"),
    kernel_axes=(1, 2, 3, 0),
    depthwise_axes=(1, 2, 0, 3),
)


def load(path: pathlib.Path) -> PretrainedNetwork:
    """Reads a network from a .tflite file. 8-bit weights are dequantized, per tensor or per channel.

    Images are resized to the input size of a float network, and padded with gray to that of an 8-bit network.

    Raises:
      UserError: the file is damaged or contains another network.
    """
    graph = tflite_file.read(path)
    try:
        follower, output_stride = _Follower(graph), _output_stride(graph)
        features = _follow_backbone(follower, output_stride)
        num_classes = _follow_head(follower, features)
    except UserError as error:
        raise UserError(f"{path} is not a MobileNetV2 DeepLabv3 of research/deeplab: {error}") from None
    (image,) = (graph.tensors[number] for number in graph.inputs)
    quantized = image.scales.size > 0
    # Stored pixels are 0-255; the network sees scale * (pixel - zero point).
    mean, std = (float(image.zero_points[0]), 1 / float(image.scales[0])) if quantized else (127.5, 127.5)
    model = model_config(
        backbone="mobilenet_v2",
        width_multiplier=follower.shape(features)[3] / STAGES[-1].features,
        output_stride=output_stride,
        atrous_rates=(),
        aspp_channels=len(follower.arrays["aspp/projection/bias"]),
        decoder="none",
        backbone_norm_epsilon=_EPSILON,
        head_norm_epsilon=_EPSILON,
        freeze_norm_statistics=True,
        padding="same_upper",
        align_corners=True,
        input_mean=(mean,) * 3,
        input_std=(std,) * 3,
    )
    variables, report = translate(follower.arrays, follower.modules, variable_shapes(model, num_classes), _TFLITE)
    report.append("BatchNorm was folded into the convolutions: imported as biases with frozen statistics")
    if quantized:
        report.append("8-bit weights dequantized, activations not rounded: logits differ by quantization steps")
    return PretrainedNetwork(
        model=model,
        variables=variables,
        label_set=voc_or_numbered_labels(num_classes),
        protocol="whole" if quantized else "squeeze",
        image_size=image.shape[1:3],
        report=report,
    )


class _Follower:
    """Follows a graph from operator to operator and collects the arrays of its layers.

    Attributes:
      graph: graph of the file.
      arrays: collected arrays, by the path of our convolution and the name of the array.
      modules: the `modules` of `translate`.
    """

    def __init__(self, graph: tflite_file.Graph):
        self.graph, self.arrays, self.modules = graph, {}, {}
        # QUANTIZE and DEQUANTIZE only change how numbers are stored.
        self._alias, self._left = {}, []
        for operator in graph.operators:
            if operator.kind in ("QUANTIZE", "DEQUANTIZE") and operator.inputs and operator.outputs:
                self._alias[operator.outputs[0]] = self.resolve(operator.inputs[0])
            else:
                self._left.append(operator)

    def resolve(self, number: int) -> int:
        """Returns the tensor that this one is a quantized or dequantized copy of, or itself."""
        return self._alias.get(number, number)

    def shape(self, number: int) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self.graph.tensors[number].shape

    def waiting(self, kind: str, number: int) -> list[tflite_file.Operator]:
        """Returns the operators of this kind that consume the tensor and were not taken yet."""
        return [op for op in self._left if op.kind == kind and number in map(self.resolve, op.inputs)]

    def take(self, kind: str, number: int, **options: int) -> tuple[int, list[int]]:
        """Takes the only operator of this kind that consumes the tensor, and checks its options.

        Returns:
          The tensor it computes, and its input tensors.
        """
        found, place = self.waiting(kind, number), f"{kind} after tensor {self.graph.tensors[number].name!r}"
        if len(found) != 1:
            raise UserError(f"expected one {place} of shape {self.shape(number)}, found {len(found)}")
        (operator,) = found
        for option, value in options.items():
            if operator.options[option] != value:
                raise UserError(f"{place} has {option}={operator.options[option]}, not {value}")
        if len(operator.outputs) != 1 or -1 in operator.inputs:
            raise UserError(f"{place} has a missing input or {len(operator.outputs)} outputs")
        if len(self.shape(operator.outputs[0])) != (3 if kind == "ARG_MAX" else 4):
            raise UserError(f"{place} has an output of shape {self.shape(operator.outputs[0])}")
        self._left.remove(operator)
        return operator.outputs[0], [self.resolve(operand) for operand in operator.inputs]

    def layer(
        self,
        path: str,
        number: int,
        *,
        activation: int,
        norm: str = "",
        kind: str = "CONV_2D",
        size: int = 1,
        stride: int = 1,
        rate: int = 1,
    ) -> int:
        """Takes a convolution and collects its arrays.

        Args:
          path: path of our convolution.
          number: its input tensor.
          activation: the activation it must have.
          norm: path of our BatchNorm that was folded into it; "" if its bias is a plain bias.
          kind: operator kind.
          size: height and width of its kernel.
          stride: its stride.
          rate: its atrous rate.

        Returns:
          The tensor it computes.
        """
        output, operands = self.take(
            kind,
            number,
            padding=SAME_PADDING,
            activation=activation,
            stride_height=stride,
            stride_width=stride,
            rate_height=rate,
            rate_width=rate,
        )
        if len(operands) != 3 or operands[0] != number:
            raise UserError(f"{path} has {len(operands)} operands, not input, kernel and bias")
        kernel, bias = (self.graph.tensors[operand].values() for operand in operands[1:])
        if kernel.ndim != 4 or kernel.shape[1:3] != (size, size) or bias.ndim != 1:
            raise UserError(
                f"{path} has a kernel of shape {kernel.shape} and a bias of {bias.shape}, not {size}x{size}"
            )
        self.arrays |= {f"{path}/kernel": kernel, f"{path}/bias": bias}
        self.modules[path] = path
        if norm:
            self.modules[norm] = path
            self.arrays |= {
                f"{path}/scale": np.ones_like(bias),
                f"{path}/mean": np.zeros_like(bias),
                f"{path}/var": np.full_like(bias, 1 - _EPSILON),
            }
        return output

    def finish(self, number: int) -> None:
        """Checks that the graph ends with this tensor and that every operator was taken."""
        if [self.resolve(output) for output in self.graph.outputs] != [number]:
            raise UserError(f"tensor {self.graph.tensors[number].name!r} is not the only output")
        if self._left:
            raise UserError(f"there is an unexpected operator {self._left[0].kind}")


def _output_stride(graph: tflite_file.Graph) -> int:
    strides = [op.options["stride_height"] for op in graph.operators if op.kind == "DEPTHWISE_CONV_2D"]
    if len(strides) != sum(stage.units for stage in STAGES):
        raise UserError(f"it has {len(strides)} depthwise convolutions")
    stride = 2 * math.prod(strides)
    if stride not in (8, 16, 32):
        raise UserError(f"{len(strides)} depthwise convolutions give output stride {stride}")
    return stride


def _follow_backbone(follower: _Follower, output_stride: int) -> int:
    """Takes the operators of MobileNetV2 and returns the tensor of its features."""
    if len(follower.graph.inputs) != 1:
        raise UserError(f"expected one input, found {len(follower.graph.inputs)}")
    x = follower.resolve(follower.graph.inputs[0])
    image = follower.graph.tensors[x]
    pixels = image.dtype == (np.uint8 if image.scales.size else np.float32)
    if len(image.shape) != 4 or image.shape[3] != 3 or not pixels or image.scales.size > 1 or not image.scales.all():
        raise UserError(f"the input of shape {image.shape} and type {image.dtype} is not a float32 or uint8 image")
    x = follower.layer("backbone/stem_conv", x, norm="backbone/stem_norm", activation=RELU6, size=3, stride=2)
    strides = [stage.stride if i == 0 else 1 for stage in STAGES for i in range(stage.units)]
    plan = iter(plan_units(strides, output_stride, stem_stride=2))
    for number, stage in enumerate(STAGES, 1):
        for i in range(stage.units):
            unit, path, shortcut = next(plan), f"backbone/stage{number}_block{i + 1}", x
            if stage.expansion != 1:
                x = follower.layer(f"{path}/expand_conv", x, norm=f"{path}/expand_norm", activation=RELU6)
            x = follower.layer(
                f"{path}/depthwise_conv",
                x,
                norm=f"{path}/depthwise_norm",
                activation=RELU6,
                kind="DEPTHWISE_CONV_2D",
                size=3,
                stride=unit.stride,
                rate=unit.rate,
            )
            x = follower.layer(f"{path}/project_conv", x, norm=f"{path}/project_norm", activation=NO_ACTIVATION)
            if i > 0:
                x, terms = follower.take("ADD", x, activation=NO_ACTIVATION)
                if shortcut not in terms or len(terms) != 2:
                    raise UserError(f"the addition of {path} does not add its input")
    return x


def _follow_head(follower: _Follower, features: int) -> int:
    """Takes the operators of ASPP, classifier and resizing, and returns the number of classes."""
    height, width = follower.shape(features)[1:3]
    pooled, _ = follower.take(
        "AVERAGE_POOL_2D",
        features,
        padding=VALID_PADDING,
        activation=NO_ACTIVATION,
        filter_height=height,
        filter_width=width,
    )
    pooled = follower.layer("aspp/branch_pooling/conv", pooled, norm="aspp/branch_pooling/norm", activation=RELU)
    pooled = _follow_resize(follower, pooled, (height, width))
    branch = follower.layer("aspp/branch_1x1/conv", features, norm="aspp/branch_1x1/norm", activation=RELU)
    x, branches = follower.take("CONCATENATION", branch, axis=3, activation=NO_ACTIVATION)
    x = follower.layer("aspp/projection", x, norm="aspp/projection_norm", activation=RELU)
    kernel, channels = follower.arrays["aspp/projection/kernel"], follower.shape(branch)[3]
    follower.arrays["aspp/projection/kernel"] = _reorder_branches(kernel, branches, (branch, pooled), channels)
    logits = x = follower.layer("classifier", x, activation=NO_ACTIVATION)
    image_size = follower.shape(follower.graph.inputs[0])[1:3]
    while follower.waiting("RESIZE_BILINEAR", x):
        # The exporter resizes the logits to their own size first.
        x = _follow_resize(follower, x, (height, width), image_size)
    if follower.shape(x)[1:3] != image_size:
        raise UserError(f"the output has size {follower.shape(x)[1:3]}, not that of the input, {image_size}")
    if follower.waiting("ARG_MAX", x):
        x, operands = follower.take("ARG_MAX", x)
        axis = follower.graph.tensors[operands[-1]].values()
        if axis.size != 1 or int(axis.item()) not in (3, -1):
            raise UserError("ARG_MAX does not reduce the class axis")
    follower.finish(x)
    return follower.shape(logits)[3]


def _follow_resize(follower: _Follower, number: int, *sizes: Sequence[int]) -> int:
    resized, _ = follower.take("RESIZE_BILINEAR", number, align_corners=1, half_pixel_centers=0)
    if follower.shape(resized)[1:3] not in sizes:
        raise UserError(f"RESIZE_BILINEAR has an output of shape {follower.shape(resized)}")
    return resized


def _reorder_branches(kernel: np.ndarray, branches: Sequence[int], ours: Sequence[int], channels: int) -> np.ndarray:
    """Reorders the input channels of a kernel (OHWI) of concatenated branches to our order of the branches."""
    if sorted(branches) != sorted(ours) or kernel.shape[3] != channels * len(ours):
        raise UserError(f"CONCATENATION has the inputs {branches}, not the two branches")
    parts = [kernel[..., i * channels : (i + 1) * channels] for i in map(branches.index, ours)]
    return np.concatenate(parts, axis=3)
