"""The worker of PyTorch: the guide's network (`torch_deeplab`) and segmentation_models.pytorch, channels_last.

`"dtype": "bfloat16"` in a task runs the network under automatic mixed precision, with parameters, loss and update in
float32. `"compile": true` compiles the forward and backward pass with `torch.compile`, which needs a C++ compiler. A
prediction then runs a frozen program, with BatchNorm folded into the kernels.

It starts from uint8 images, as ours does; normalization is part of the measured work. A step is forward pass, mean
cross-entropy, backward pass and SGD with momentum, and for the guide's network also Keras's clipping per variable and
its decoupled decay. It counts no confusion matrix, which our step does.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import worker
from benchmarks.peers.torch_deeplab import DeepLab

CLASSES, VOID = 21, 255


def build(network: str) -> tuple[torch.nn.Module, tuple, tuple]:
    """Returns the network, and the mean and deviation of its images."""
    if network.startswith("guide"):
        return DeepLab(CLASSES, logits_first=network == "guide_logits_first"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    import segmentation_models_pytorch as smp

    model = smp.DeepLabV3Plus(
        network.removeprefix("smp_"), encoder_weights=None, classes=CLASSES, encoder_output_stride=16
    )
    return model, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def compiled(function: Callable, task: dict, *, freezing: bool = False) -> Callable:
    """Returns the function as the task runs it: eager, or compiled by inductor, with constant parameters if it may."""
    if not task.get("compile"):
        return function
    return torch.compile(function, options={"freezing": freezing})


def main() -> None:
    """Measures the task's network."""
    task = worker.read_task()
    torch.manual_seed(0)
    model, mean, std = build(task["network"])
    model = model.to(memory_format=torch.channels_last)
    size, batch = (64, min(2, task["batch"])) if task["quick"] else (task["size"], task["batch"])
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, CLASSES, (batch, size, size), dtype=np.uint8))
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    parameters = list(model.parameters())

    def logits():
        with torch.autocast("cpu", torch.bfloat16, enabled=task.get("dtype") == "bfloat16"):
            return model((images.permute(0, 3, 1, 2).float() - mean) / std)  # NHWC memory is channels_last already

    def compute_loss():
        return F.cross_entropy(logits().float(), labels.long(), ignore_index=VOID)

    if task["kind"] == "infer":
        model.eval()
        run = compiled(logits, task, freezing=True)
        with torch.no_grad():
            seconds = worker.repeat(lambda: run().float(), warm_up=3, repetitions=task["repetitions"])
        name = "inference"
    else:
        model.train()
        is_guide, rate = task["network"].startswith("guide"), 0.00175
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
        run = compiled(compute_loss, task)

        def step():
            optimizer.zero_grad()
            loss = run()
            loss.backward()
            if is_guide:
                for parameter in parameters:
                    torch.nn.utils.clip_grad_norm_(parameter, 10.0)
                with torch.no_grad():
                    torch._foreach_mul_(parameters, 1 - rate * 1e-4)
            optimizer.step()
            return loss.item()

        seconds = worker.repeat(step, warm_up=2, repetitions=task["repetitions"])
        name = "step"
    worker.report(
        {name: seconds},
        packages=("torch",) if task["network"].startswith("guide") else ("torch", "segmentation-models-pytorch"),
        facts={"parameters": sum(value.numel() for value in parameters), "batch": list(images.shape)},
    )


if __name__ == "__main__":
    main()
