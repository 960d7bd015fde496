"""The worker of PyTorch's single operations, channels_last."""

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import operations, worker


def build(operation: operations.Operation):
    """Returns the function of (x, weights), or of (x,) without weights."""
    padding = operation.rate * (operation.kernel - 1) // 2
    if operation.kind in ("conv", "depthwise"):
        groups = operation.channels if operation.kind == "depthwise" else 1
        return lambda x, weights: F.conv2d(x, weights, None, operation.stride, padding, operation.rate, groups)
    if operation.kind == "max-pool":
        return lambda x: F.max_pool2d(x, operation.kernel, operation.stride, padding)
    if operation.kind == "resize":
        size = (operation.out_size, operation.out_size)
        return lambda x: F.interpolate(x, size, mode="bilinear", align_corners=False)
    labels = np.random.default_rng(0).integers(0, operation.channels, (1, operation.size, operation.size))
    labels = torch.from_numpy(labels)
    return lambda x: F.cross_entropy(x, labels, reduction="sum")


def arguments(operation: operations.Operation) -> list[torch.Tensor]:
    """Returns x, and the weights of a convolution."""
    shapes = [(1, operation.channels, operation.size, operation.size)]
    if operation.kind == "conv":
        shapes.append((operation.features, operation.channels, operation.kernel, operation.kernel))
    if operation.kind == "depthwise":
        shapes.append((operation.channels, 1, operation.kernel, operation.kernel))
    return [torch.randn(shape).to(memory_format=torch.channels_last) for shape in shapes]


def main() -> None:
    """Measures every operation in every direction, gradients without the forward pass that they need."""
    task = worker.read_task()
    torch.manual_seed(0)
    seconds = {}
    for operation in operations.selected(task["quick"]):
        function, values = build(operation), arguments(operation)
        for direction, wanted in operation.directions().items():
            if not wanted:
                with torch.no_grad():
                    times = worker.repeat(
                        lambda function=function, values=values: function(*values),
                        warm_up=2,
                        repetitions=task["repetitions"],
                    )
            else:
                leaves = [values[place].requires_grad_(True) for place in wanted]
                output = function(*values)
                cotangent = torch.randn_like(output)
                times = worker.repeat(
                    lambda output=output, leaves=leaves, cotangent=cotangent: torch.autograd.grad(
                        output, leaves, cotangent, retain_graph=True
                    ),
                    warm_up=2,
                    repetitions=task["repetitions"],
                )
                for leaf in leaves:
                    leaf.requires_grad_(False)
            seconds[f"{operation.name()}, {direction}"] = times
    worker.report(seconds, packages=("torch",))


if __name__ == "__main__":
    main()
