"""Runs DeepLabv3 and DeepLabv3+ of MMSegmentation on weights by formula.

Run from the checkout, with torch, mmsegmentation, mmengine and mmcv-lite installed (made with torch 2.14.1,
mmsegmentation 1.2.2, mmengine 0.10.7, mmcv-lite 2.1.0):

    PYTHONPATH=. python tests/goldens/make_mmseg.py

writes tests/goldens/mmseg.npz: as `make_torch.py`, and the text of each network's config under `<network>:config`.
"""

import pathlib
import sys
import types

import numpy as np
import torch

from tests.goldens import torch_formula
from tests.goldens.make_torch import GOLDENS, resnet_modules, run, shapes


class _Extension(types.ModuleType):
    """Stands for mmcv's compiled operations, which these networks do not call and mmcv-lite does not contain."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)


sys.modules["mmcv._ext"] = _Extension("mmcv._ext")

import mmseg  # noqa: E402
import mmseg.models  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

CONFIGS = pathlib.Path(mmseg.__file__).parent / ".mim" / "configs"
UNITS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NETWORKS = {
    "v3plus_r18": (18, "deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024"),
    "v3_r18": (18, "deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024"),
    "v3plus_r50": (50, "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512"),
    "v3_r50": (50, "deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512"),
    "v3plus_r101": (101, "deeplabv3plus/deeplabv3plus_r101-d8_4xb2-80k_cityscapes-512x1024"),
    "v3_r101": (101, "deeplabv3/deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024"),
    "v3plus_r101_stride16": (101, "deeplabv3plus/deeplabv3plus_r101-d16-mg124_4xb2-80k_cityscapes-512x1024"),
    "v3plus_r18b_aligned": (18, "deeplabv3plus/deeplabv3plus_r18b-d8_4xb2-80k_cityscapes-769x769"),
}
SMALL, LARGE = (97, 161), (512, 512)


def build(file):
    """The network of a config, with logits at the size of the images and those of the auxiliary head."""
    config = Config.fromfile(CONFIGS / f"{file}.py")
    config.model.pretrained = None
    model = MODELS.build(config.model).eval()

    def forward(images):
        features = model.backbone(images)
        model.auxiliary_head(features)  # observed by a hook
        logits = model.decode_head(features)
        return torch.nn.functional.interpolate(
            logits, images.shape[2:], mode="bilinear", align_corners=model.decode_head.align_corners
        )

    model.forward = forward
    return model, config.pretty_text


def modules(depth, model):
    heads = {
        f"aspp/branch_{name}": f"decode_head.aspp_modules.{i}"
        for i, name in enumerate(("1x1", "atrous1", "atrous2", "atrous3"))
    }
    heads |= {
        "aspp/branch_pooling": "decode_head.image_pool.1",
        "aspp": "decode_head.bottleneck",
        "classifier": "decode_head.conv_seg",
        "auxiliary": "auxiliary_head",
    }
    if hasattr(model.decode_head, "c1_bottleneck"):
        heads |= {"decoder/low_level": "decode_head.c1_bottleneck", "decoder": "decode_head.sep_bottleneck"}
    return resnet_modules(UNITS[depth], "backbone.") | heads


if __name__ == "__main__":
    init_default_scope("mmseg")
    outputs = {}
    for network, (depth, file) in NETWORKS.items():
        model, text = build(file)
        outputs |= run(network, model, modules(depth, model), SMALL)
        outputs[f"{network}:config"] = np.frombuffer(text.encode(), np.uint8)
        if network.count("_") == 1:
            large = run(network, model, {"auxiliary": "auxiliary_head"}, LARGE)
            for path in ("auxiliary", "logits"):
                outputs[f"{network}:{path}_512"] = large[f"{network}:{path}"]
        print(network, sum(value.numel() for value in model.parameters()), flush=True)
    backbone = MODELS.build({"type": "ResNetV1c", "depth": 50})
    outputs["resnet50_v1c:arrays"] = torch_formula.pack(shapes(backbone))
    np.savez_compressed(GOLDENS / "mmseg.npz", **outputs)
    print(GOLDENS / "mmseg.npz", (GOLDENS / "mmseg.npz").stat().st_size, "bytes")
