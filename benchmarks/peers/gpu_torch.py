"""The worker of `benchmarks.gpu` for PyTorch: the same networks, channels_last, automatic mixed precision in bfloat16.

A step is forward pass, mean cross-entropy, backward pass and the config's optimizer. It counts no confusion matrix,
which our step does. Where PyTorch has a fused or a "foreach" form of an update, it is used.
"""

import functools
import itertools

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import worker
from benchmarks.peers import torch_deeplab, torch_resnet101, torch_segformer

CLASSES, IGNORE = 21, 255
_NETWORKS = {
    "guide": functools.partial(torch_deeplab.DeepLab, logits_first=True),  # our order, and the faster one
    "resnet101": torch_resnet101.DeepLab,
    "segformer": torch_segformer.SegFormer,
}


def main() -> None:
    """Runs the task on the command line."""
    task = worker.read_task()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    if not torch.cuda.is_available() and not task["toy"]:
        raise SystemExit("PyTorch found no GPU")
    KINDS[task["kind"]](task, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def step(task: dict, device: torch.device) -> None:
    """Measures train steps on a batch of uint8 images that is on the device."""
    model = _build(task, device).train()
    images, labels = _batch(task["batch"], task["size"], device)
    update = _make_update(task["network"], list(model.parameters()), device)

    def compute_loss():
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(images.permute(0, 3, 1, 2).float())
        return F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE)

    compute = torch.compile(compute_loss) if task["compile"] else compute_loss

    def steps():
        for _ in range(task["steps"]):
            compute().backward()
            update()
        _wait(device)

    seconds = worker.repeat(steps, warm_up=1, repetitions=task["repetitions"])
    facts = {"parameters": _count(model), "batch": list(images.shape), "steps": task["steps"]}
    _report({"steps": seconds}, device, facts)


def infer(task: dict, device: torch.device) -> None:
    """Measures labels of batches of uint8 images that are on the device."""
    seconds, parameters, repeated = {}, {}, {}
    for network, batch in itertools.product(task["networks"], task["batches"]):
        model = _build(task | {"network": network}, device).eval()
        images, _ = _batch(batch, task["size"], device)

        def predict(model=model, images=images):
            with torch.autocast(device.type, torch.bfloat16):
                return model(images.permute(0, 3, 1, 2).float()).argmax(1).to(torch.uint8)

        run = torch.compile(predict) if task["compile"] else predict
        name = f"{network}, batch {batch}"
        count = repeated[name] = max(1, task["images"] // batch)

        def batches(run=run, count=count):
            with torch.inference_mode():
                for _ in range(count):
                    run()
            _wait(device)

        seconds[name] = worker.repeat(batches, warm_up=1, repetitions=task["repetitions"])
        parameters[network] = _count(model)
    _report(seconds, device, {"batches": repeated, "parameters": parameters})


def _build(task: dict, device: torch.device) -> torch.nn.Module:
    return _NETWORKS[task["network"]](CLASSES).to(device, memory_format=torch.channels_last)


def _batch(batch: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    shape = (batch, size, size)
    images = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, shape, dtype=np.uint8)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def _make_update(network: str, parameters: list, device: torch.device):
    """Returns a function that updates the parameters and clears the gradients, by the rule of the network's config."""
    if network == "segformer":
        options = {"lr": 6e-5, "weight_decay": 0.01, "fused": device.type == "cuda"}
        optimizer = torch.optim.AdamW(parameters, **options)
    else:
        decay = 0.0 if network == "guide" else 1e-4
        optimizer = torch.optim.SGD(parameters, lr=0.007, momentum=0.9, weight_decay=decay)

    def update():
        if network == "guide":  # Keras's clipping per variable and decoupled decay
            gradients = [parameter.grad for parameter in parameters]
            factors = torch._foreach_norm(gradients)
            torch._foreach_add_(factors, 1e-6)
            torch._foreach_reciprocal_(factors)
            torch._foreach_mul_(factors, 10.0)
            torch._foreach_clamp_max_(factors, 1.0)
            torch._foreach_mul_(gradients, factors)
            with torch.no_grad():
                torch._foreach_mul_(parameters, 1 - 0.007 * 1e-4)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def _count(model: torch.nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _report(seconds: dict, device: torch.device, facts: dict) -> None:
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    worker.report(seconds, packages=("torch",), memory=memory, facts=facts)


KINDS = {"step": step, "infer": infer}

if __name__ == "__main__":
    main()
