"""Writes the small PyTorch files that test the reader: run with PyTorch (2.14.1 was used), inside this folder.

    python make_torch_files.py

The values are counts, so that the test can say what belongs where.
"""

import collections

import torch


def tensors():
    """One tensor of every kind the reader knows."""
    shared = torch.arange(24, dtype=torch.float32)
    return collections.OrderedDict(
        [
            ("plain", torch.arange(6, dtype=torch.float32).reshape(2, 3)),
            ("parameter", torch.nn.Parameter(torch.arange(4, dtype=torch.float32))),
            ("transposed", shared.reshape(4, 6).T),
            ("strided", shared[1::5]),
            ("offset", shared[20:]),
            ("half", torch.arange(5, dtype=torch.float16) / 4),
            ("bfloat16", torch.tensor([1.0, -2.5, 3e38, 2.0**-126], dtype=torch.bfloat16)),
            ("double", torch.arange(3, dtype=torch.float64) / 3),
            ("count", torch.tensor(2**40)),
            ("bytes", torch.tensor([0, 255], dtype=torch.uint8)),
            ("flags", torch.tensor([True, False])),
            ("empty", torch.empty(0, 3)),
        ]
    )


def module():
    """A state dict as modules give it: an OrderedDict with `_metadata`, parameters and a count."""
    norm = torch.nn.BatchNorm2d(2)
    norm.weight.data = torch.tensor([1.0, 2.0])
    return torch.nn.Sequential(norm).state_dict()


if __name__ == "__main__":
    torch.save(tensors(), "zip.pth")
    torch.save(tensors(), "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": module(), "best": 0.5, "note": None}, "nested_zip.pth")
    torch.save({"epoch": 3, "model": module()}, "nested_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(tensors(), "protocol4.pth", pickle_protocol=4)
