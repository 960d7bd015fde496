"""Runs KerasHub on weights and images from `formula.py` and stores what it computes.

Needs an environment of its own, in which the files here were made:

    pip install keras-hub==0.32.0 keras==3.15.1 tensorflow-cpu==2.21.0 jax==0.10.2 h5py
    python tests/goldens/make_kerashub.py                 # kerashub.npz: DeepLabV3+ and ResNet
    python tests/goldens/make_kerashub.py segformer       # kerashub_segformer.npz
"""

import json
import os
import pathlib
import sys
import tempfile
import zipfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import formula  # noqa: E402
import h5py  # noqa: E402
import keras  # noqa: E402
import keras_hub  # noqa: E402
import numpy as np  # noqa: E402

CLASSES = 21
ENCODERS = {
    "18": ("basic_block", (2, 2, 2, 2)),
    "50": ("bottleneck_block", (3, 4, 6, 3)),
    "101": ("bottleneck_block", (3, 4, 23, 3)),
}


def build_encoder(block, blocks):
    """ResNet v1 as the presets `resnet_18_imagenet`, `resnet_50_imagenet`... configure it."""
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(blocks),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block,
        use_pre_activation=False,
        image_shape=(None, None, 3),
    )


def assign(model):
    """Sets the model's variables by the formula of their paths."""
    for variable in model.variables:
        variable.assign(formula.weight(variable.path, tuple(variable.shape), is_norm=False))


def stored_layout(model, path: pathlib.Path) -> list[list]:
    """Where `save_weights` puts each variable: [group, recorded name of the layer, number, variable's path, shape]."""
    model.save_weights(path)
    by_content = {np.asarray(variable).tobytes(): variable for variable in model.variables}
    rows = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            variable = by_content[item[()].tobytes()]
            group, _, number = name.rpartition("/vars/")
            rows.append([group, str(item.parent.attrs["name"]), number, variable.path, list(variable.shape)])

    with h5py.File(path) as file:
        file.visititems(visit)
    return rows


def sample(array, count=10):
    """`count` by `count` pixels of (1, H, W, C), the corners among them."""
    rows, columns = (np.linspace(0, extent - 1, min(count, extent)).astype(int) for extent in array.shape[1:3])
    return np.asarray(array)[:, rows][:, :, columns].astype(np.float32)


def segformer() -> None:
    """SegFormer-B0 at 96x96: logits and the four stages."""
    encoder = keras_hub.models.MiTBackbone(
        image_shape=(96, 96, 3),
        num_layers=4,
        hidden_dims=[32, 64, 160, 256],
        layerwise_depths=[2, 2, 2, 2],
        layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        max_drop_path_rate=0.1,
    )
    backbone = keras_hub.models.SegFormerBackbone(image_encoder=encoder, projection_filters=256)
    model = keras_hub.models.SegFormerImageSegmenter(backbone=backbone, num_classes=5)
    trained = [variable for variable in model.variables if "seed" not in variable.path]
    for variable in trained:
        variable.assign(formula.weight(variable.path, tuple(variable.shape), is_norm=False))
    assert len({variable.path for variable in trained}) == len(trained)
    with tempfile.TemporaryDirectory() as folder:
        layout = stored_layout(model, pathlib.Path(folder) / "model.weights.h5")
        encoder_layout = stored_layout(encoder, pathlib.Path(folder) / "encoder.weights.h5")
        model.save(pathlib.Path(folder) / "model.keras")
        with zipfile.ZipFile(pathlib.Path(folder) / "model.keras") as archive:
            config = archive.read("config.json").decode()
    images = formula.uniform("segformer", (1, 96, 96, 3), -2, 2)
    outputs = {"logits": sample(model(images, training=False))}
    features = keras.Model(encoder.inputs, encoder.pyramid_outputs)(images, training=False)
    for level, value in features.items():
        outputs[f"endpoint/stage{level[1]}"] = sample(value, 3)[..., ::8]
    np.savez_compressed(
        pathlib.Path(__file__).parent / "kerashub_segformer.npz",
        layout=json.dumps(layout),
        encoder_layout=json.dumps(encoder_layout),
        config=config,
        **outputs,
    )


def main() -> None:
    """Logits at 64x64 and 640x640, and what every block hands on at 64x64."""
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=build_encoder(*ENCODERS["50"]),
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P5",
        dilation_rates=[6, 12, 18],
        upsampling_size=8,
        image_shape=(None, None, 3),
    )
    model = keras_hub.models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=CLASSES)
    assign(model)
    layouts = {}
    with tempfile.TemporaryDirectory() as folder:
        layout = stored_layout(model, pathlib.Path(folder) / "model.weights.h5")
        model.save(pathlib.Path(folder) / "model.keras")
        with zipfile.ZipFile(pathlib.Path(folder) / "model.keras") as archive:
            config = archive.read("config.json").decode()
        for depth, (block, blocks) in ENCODERS.items():
            encoder = build_encoder(block, blocks)
            assign(encoder)
            layouts[depth] = stored_layout(encoder, pathlib.Path(folder) / "encoder.weights.h5")

    outputs = {}
    for size in (64, 640):
        images = formula.uniform(f"image{size}", (1, size, size, 3), 0, 2)
        outputs[f"logits{size}"] = sample(model(images, training=False))
    extractor = backbone.get_layer("functional")
    names = [layer.name for layer in extractor.layers if layer.name.endswith("_out")]
    taps = keras.Model(extractor.inputs, [extractor.get_layer(name).output for name in names])
    images = formula.uniform("image64", (1, 64, 64, 3), 0, 2)
    values = dict(zip(names, taps(images, training=False), strict=True))
    names = ["spatial_pyramid_pooling", "decoder_relu", "segmentation_head_relu"]
    taps = keras.Model(backbone.inputs, [backbone.get_layer(name).output for name in names])
    values |= dict(zip(names, taps(images, training=False), strict=True))
    for name, value in values.items():
        outputs[f"endpoint/{name}"] = sample(value, 2)[..., :: value.shape[-1] // 16]
    np.savez_compressed(
        pathlib.Path(__file__).parent / "kerashub.npz",
        layout=json.dumps(layout),
        encoder_layouts=json.dumps(layouts),
        config=config,
        **outputs,
    )


if __name__ == "__main__":
    segformer() if sys.argv[1:] == ["segformer"] else main()
