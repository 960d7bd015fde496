"""The table of parameters and multiply-adds equals published counts and counts by hand."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from deeplab_jax.analysis import summary
from deeplab_jax.config import FIELDS, load_config
from deeplab_jax.models import DeepLabV3Plus, abstract_variables, build_model
from deeplab_jax.pretrained.network import model_config


@pytest.fixture(scope="module")
def guide():
    """The rows of the KerasCV guide's network at 512x512 pixels and 21 classes, by name."""
    model = build_model(load_config("kerascv_guide").model, num_classes=21)
    return {row.name: row for row in summary.summarize(model, 512, 512)}


def test_the_guides_parameters(guide):
    # KerasCV's own count of its layers.
    parameters = {name: row.parameters for name, row in guide.items()}
    assert parameters == {
        "backbone": 23_556_608,
        "aspp": 15_538_176,
        "decoder/low_level": 12_480,
        "decoder/refine": 84_224 - 21 * 256,
        "classifier": 21 * 256,
        "resizing": 0,
    }
    assert sum(parameters.values()) == 39_191_488
    assert sum(row.trainable for row in guide.values()) == 39_146_464


def test_the_guides_output_shapes(guide):
    assert {name: row.output_shape for name, row in guide.items()} == {
        "backbone": (1, 16, 16, 2048),
        "aspp": (1, 16, 16, 256),
        "decoder/low_level": (1, 128, 128, 48),
        "decoder/refine": (1, 128, 128, 256),
        "classifier": (1, 512, 512, 21),
        "resizing": (1, 512, 512, 21),
    }


def test_the_guides_multiply_adds_equal_the_published_ones(guide):
    nominal = {name: round(row.nominal / 1e9, 2) for name, row in guide.items()}
    head = guide["decoder/refine"].nominal + guide["classifier"].nominal
    assert (nominal["backbone"], nominal["aspp"], nominal["decoder/low_level"]) == (60.41, 3.84, 0.20)
    # 1x1 from 304 to 256 at a quarter of the size, 1x1 to 21 classes at full size.
    assert head == 128 * 128 * 304 * 256 + 512 * 512 * 256 * 21
    assert round(head / 1e9, 2) == 2.68
    assert round(sum(row.nominal for row in guide.values()) / 1e9, 2) == 67.14


def test_projecting_and_classifying_first_saves_only_in_the_head(guide):
    assert all(guide[name].executed == guide[name].nominal for name in ("backbone", "decoder/low_level"))
    # The ASPP's pooled branch is projected as one pixel, before it is spread over 16x16.
    assert guide["aspp"].nominal - guide["aspp"].executed == (16 * 16 - 1) * 256 * 256
    # The classifier runs at a quarter of the size in each direction; so does the projection of the ASPP's 256
    # channels at 16x16 instead of 128x128, while that of the 48 low-level channels stays.
    assert guide["classifier"].executed * 16 == guide["classifier"].nominal
    assert guide["decoder/refine"].executed == (16 * 16 * 256 + 128 * 128 * 48) * 256


def test_resizing_in_the_published_order_costs_dense_interpolation(guide):
    model = build_model(load_config("kerascv_guide").model, num_classes=21, published_order=True)
    variables = _abstract_variables(model)
    images = jax.ShapeDtypeStruct((1, 512, 512, 3), np.uint8)
    counts = summary.count_multiply_adds(model, variables, images)
    published = sum(count for (_, kind), count in counts.items() if kind == "resize")
    assert round(published / 1e9, 2) == 10.81
    assert guide["resizing"].nominal == 0
    # Enlarging 21 channels of logits instead of 256 of features.
    assert guide["resizing"].executed < published / 10


def test_resnet50_at_224_pixels_has_the_published_multiply_adds():
    # torchvision's ResNet-50 has 4,089,184,256 multiply-adds at 224x224, 2,048,000 of them in its classifier.
    config = load_config("kerascv_guide").model
    config.backbone, config.padding = "resnet50_v1", "symmetric"
    rows = {row.name: row for row in summary.summarize(build_model(config, num_classes=21), 224, 224)}
    assert rows["backbone"].nominal == 4_089_184_256 - 2_048_000
    assert rows["backbone"].executed == rows["backbone"].nominal
    assert rows["backbone"].trainable == 25_557_032 - 2_049_000


def test_a_network_without_a_decoder_has_no_decoder_rows(tiny_config):
    tiny_config.model.decoder = "none"
    rows = summary.summarize(build_model(tiny_config.model, num_classes=6), 32, 48)
    assert [row.name for row in rows] == ["backbone", "aspp", "classifier", "resizing"]
    assert rows[2].output_shape == (1, 32, 48, 6)
    assert rows[2].parameters == 8 * 6 + 6


def test_counts_do_not_depend_on_the_operations(tiny_config):
    models = [build_model(tiny_config.model, num_classes=6, platform=platform) for platform in ("cpu", "tpu")]
    assert summary.summarize(models[0], 32, 32) == summary.summarize(models[1], 32, 32)


def test_counts_equal_those_of_loops():
    class Program(DeepLabV3Plus):
        def apply(self, kernels, x, *, train):
            x = jax.lax.conv_general_dilated(
                x, kernels["grouped"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
            )
            x = jax.jit(lambda x: jnp.einsum("bhwc,Hh->bHwc", x, kernels["rows"]))(x)
            return jnp.einsum("bhwc,bgvc->bhg", x, x), {}  # no resize, though it contracts a width

    kernels = {
        "grouped": jax.ShapeDtypeStruct((3, 3, 2, 12), np.float32),
        "rows": jax.ShapeDtypeStruct((10, 3), np.float32),
    }
    fields = model_config(backbone="none").to_dict()
    taken = {field.name: fields[field.name] for field in dataclasses.fields(Program) if field.name in fields}
    counts = summary.count_multiply_adds(
        Program(num_classes=2, **taken), kernels, jax.ShapeDtypeStruct((1, 6, 8, 8), np.float32)
    )
    by_kind = {kind: count for (_, kind), count in counts.items()}
    # Each of 3x4x12 outputs sums 3x3 taps of its group's two channels; each of 10x4x12 sums three rows; each of 10x10
    # sums 12 channels, whose columns are added up before.
    assert by_kind == {"conv": 3 * 4 * 12 * 9 * 2, "resize": 10 * 4 * 12 * 3, "matmul": 10 * 10 * 12}


def test_the_table_shows_every_row_and_the_sum():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(summary.summary_table(load_config("kerascv_guide"), 21))
    text = console.export_text()
    for row in ("backbone", "aspp", "decoder/low_level", "decoder/refine", "classifier", "resizing", "sum"):
        assert row in text
    for number in ("39,191,488", "39,146,464", "60.41 G", "3.84 G", "67.14 G", "512x512x21"):
        assert number in text, number


def _abstract_variables(model):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    return jax.eval_shape(lambda image: model.init(jax.random.PRNGKey(0), image, train=False), images)


@pytest.mark.parametrize(
    "fields",
    [
        *({"decoder": decoder} for decoder in FIELDS["model"]["decoder"].choices),
        {"aspp": "none", "decoder": "none", "cascade_blocks": 1, "output_stride": 64},
        {"aspp": "dpc", "low_level_strides": (4, 8), "decoder_convs": 1},
        {"aspp_projection_size": 3, "image_pooling_window": (32, 32), "auxiliary_channels": 4},
        {"backbone": "mit_b0", "head": "segformer", "output_stride": 32},
        {"backbone": "mobilenet_v3_small", "head": "lraspp"},
    ],
)
def test_every_parameter_and_multiply_add_is_in_a_row(fields):
    model = build_model(model_config(**{"backbone": "resnet10_v1_slim"} | fields), 3)
    variables = abstract_variables(model)
    rows = summary.summarize(model, 64, 64)
    assert sum(row.parameters for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert sum(row.trainable for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    computed = [row for row in rows if row.name not in ("resizing", "auxiliary")]
    assert all(row.nominal > 0 and row.executed > 0 and row.output_shape for row in computed)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    counts = summary.count_multiply_adds(model, variables, images)
    assert sum(row.executed for row in rows) == sum(counts.values())


def test_the_products_of_attention_are_in_the_backbone():
    model = build_model(model_config(backbone="mit_b0", head="segformer", output_stride=32), 150)
    images = jax.ShapeDtypeStruct((1, 512, 512, 3), np.uint8)
    counts = summary.count_multiply_adds(model, abstract_variables(model), images)
    attention = sum(n for (path, kind), n in counts.items() if kind == "matmul" and "/backbone/" in path)
    # Two products per block, two blocks per stage: queries, keys of the reduced image, channels of all attention heads.
    stages = ((128, 32), (64, 64), (32, 160), (16, 256))
    assert attention == sum(2 * 2 * side**2 * 16**2 * channels for side, channels in stages)
    rows = {row.name: row for row in summary.summarize(model, 512, 512)}
    convolutions = sum(n for (path, kind), n in counts.items() if kind == "conv" and "/backbone/" in path)
    assert rows["backbone"].executed == rows["backbone"].nominal == convolutions + attention


def test_the_auxiliary_head_has_parameters_but_is_not_computed():
    fields = {"backbone": "resnet10_v1_slim", "aspp_channels": 8}
    model = build_model(model_config(**fields, auxiliary_channels=4, auxiliary_features="stage3"), 3)
    *rows, auxiliary, resizing = summary.summarize(model, 64, 64)
    assert (auxiliary.name, auxiliary.output_shape) == ("auxiliary", (1, 4, 4, 3))
    assert auxiliary.trainable == 9 * 96 * 4 + 2 * 4 + 4 * 3 + 3
    assert auxiliary.nominal == auxiliary.executed == 0
    assert [*rows, resizing] == summary.summarize(build_model(model_config(**fields), 3), 64, 64)


def test_the_mesh_table_lists_every_array_and_its_size_per_device():
    config = load_config("kerascv_guide", batch=8)
    config.mesh.update({"data": -1, "fsdp": 4})
    config.train.ema_decay = 0.999
    table = summary.mesh_table(config, 21, 8)
    columns = {column.header: list(column.cells) for column in table.columns}
    rows = {name: cells for name, *cells in zip(*columns.values(), strict=True)}
    assert table.title == "data 2 x fsdp 4 x spatial 1"
    kernel = ["3x3x2048x256", "axis 3 over fsdp", f"{4 * 9 * 2048 * 256:,}", f"{9 * 2048 * 256:,}"]
    for tree in ("params", "ema_variables/params"):
        assert rows[f"{tree}/aspp/branch_atrous1/conv/kernel"] == kernel
    assert kernel in [cells for name, cells in rows.items() if name.startswith("opt_state/") and "atrous1" in name]
    assert rows["batch_stats/aspp/projection_norm/mean"][1] == "whole"
    batch = config.data.batch_size
    assert rows["batch/image"][:2] == [f"{batch}x512x512x3", "axis 0 over data x fsdp"]
    assert rows["batch/image"][3] == f"{batch // 8 * 512 * 512 * 3:,}"
    *listed, total = [int(cell.replace(",", "")) for cell in columns["bytes per device"] if cell]
    assert sum(listed) == total


def test_the_mesh_table_splits_rows():
    config = load_config("kerascv_guide", size=2048)
    config.mesh.update({"data": 4, "spatial": 2})
    columns = {column.header: list(column.cells) for column in summary.mesh_table(config, 21, 8).columns}
    assert columns["split"][-2] == "axis 0 over data, axis 1 over spatial"  # batch/label; the sum is below
