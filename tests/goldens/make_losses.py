"""Computes losses of segmentation-models-pytorch and torchvision on logits by formula.

Run from the checkout, with those packages installed (made with torch 2.14.1, torchvision 0.29.1 and
segmentation-models-pytorch 0.6.0):

    PYTHONPATH=. python tests/goldens/make_losses.py

writes tests/goldens/losses.npz: the logits and labels, and for each loss its value (for losses of regions one per
image) and the gradient of their sum by the logits, in float64 (lovasz: float32). The second image lacks a class.
"""

import pathlib

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torchvision

from tests.goldens import formula

CLASSES, IGNORED = 5, 255


def inputs():
    """Logits, and labels of two images with ignored pixels; the second has no pixel of the last class."""
    logits = formula.uniform("logits", (2, 6, 7, CLASSES), -4, 4).astype(np.float64)
    labels = formula.uniform("labels", (2, 6, 7), 0, CLASSES).astype(np.int64)
    labels[1] %= CLASSES - 1
    labels[:, :2, :3] = IGNORED
    return logits, labels


def per_image(loss):
    return lambda x, y: torch.stack([loss(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])


def torchvision_focal(x, y):
    x = x.permute(0, 2, 3, 1)[y != IGNORED]
    target = torch.nn.functional.one_hot(y[y != IGNORED], CLASSES).to(x.dtype)
    return torchvision.ops.sigmoid_focal_loss(x, target, alpha=0.25, gamma=2, reduction="mean")


def torch_binary(x, y):
    x = x.permute(0, 2, 3, 1)[y != IGNORED]
    target = torch.nn.functional.one_hot(y[y != IGNORED], CLASSES).to(x.dtype)
    return smp.losses.SoftBCEWithLogitsLoss()(x, target)


def main():
    common = {"mode": "multiclass", "ignore_index": IGNORED}
    losses = {
        "dice": per_image(smp.losses.DiceLoss(**common)),
        "dice_smooth": per_image(smp.losses.DiceLoss(**common, smooth=3.0)),
        "jaccard": per_image(smp.losses.JaccardLoss(**common)),
        "tversky": per_image(smp.losses.TverskyLoss(**common, alpha=0.3, beta=0.7)),
        "lovasz": per_image(lambda x, y: smp.losses.LovaszLoss(**common)(x.float(), y).double()),
        "focal": smp.losses.FocalLoss(**common, alpha=0.25, gamma=1.5),
        "focal_torchvision": torchvision_focal,
        "binary_cross_entropy": torch_binary,
        "cross_entropy": torch.nn.CrossEntropyLoss(
            torch.tensor([1.0, 0.5, 2.0, 3.0, 0.25], dtype=torch.float64), ignore_index=IGNORED
        ),
    }
    logits, labels = inputs()
    arrays = {"logits": logits.astype(np.float32), "labels": labels.astype(np.uint8)}
    for name, loss in losses.items():
        x = torch.from_numpy(logits).permute(0, 3, 1, 2).contiguous().requires_grad_()
        value = loss(x, torch.from_numpy(labels))
        value.sum().backward()
        arrays[name] = value.detach().numpy()
        arrays[f"{name}:gradient"] = x.grad.permute(0, 2, 3, 1).numpy()
        print(name, arrays[name])
    np.savez_compressed(pathlib.Path(__file__).with_name("losses.npz"), **arrays)


if __name__ == "__main__":
    main()
