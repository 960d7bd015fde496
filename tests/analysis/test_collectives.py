"""Collectives in HLO text: CPU text compiled here, and the forms that TPU compilers write."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deeplab_jax.analysis import collectives

TPU_TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,128]{1,0:T(8,128)})->f32[8,128]{1,0:T(8,128)}}

%all-reduce-scatter.1 (param_0: bf16[1024,128]) -> bf16[128,128] {
  %param_0 = bf16[1024,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[1024,128]{1,0:T(8,128)(2,1)} all-reduce(%param_0), channel_id=3, to_apply=%add
  ROOT %slice.1 = bf16[128,128]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.9, %c), dynamic_slice_sizes={128,128}
}

%wrapped_reduce_scatter (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  ROOT %reduce-scatter.2 = f32[8]{0} reduce-scatter(%p), dimensions={0}, to_apply=%add
}

ENTRY %main.5_spmd (param.1: f32[8,128]) -> f32[8,128] {
  %param.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-gather-start.1 = (f32[8,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)S(1)}) all-gather-start(%param.1)
  %all-gather-done.1 = f32[64,128]{1,0:T(8,128)S(1)} all-gather-done(%all-gather-start.1)
  %collective-permute-start.2 = (bf16[2,1,16,8]{3,2,1,0}, bf16[2,1,16,8]{3,2,1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1}}, metadata={op_name="jit(step)/conv"}
  %collective-permute-done.2 = bf16[2,1,16,8]{3,2,1,0} collective-permute-done(%collective-permute-start.2)
  %all-reduce-start.7 = (f32[4]{0}, s32[]) all-reduce-start(%a, %b), to_apply=%add
  %fusion.3 = bf16[128,128]{1,0:T(8,128)(2,1)} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %async.1 = ((f32[64]{0}), f32[8]{0}, u32[]) async-start(%z), calls=%wrapped_reduce_scatter
  ROOT %add.1 = f32[8,128]{1,0:T(8,128)} add(%param.1, %all-reduce.99), metadata={op_name="jit(step)/all-gather(x)"}
}
"""


def test_fused_and_asynchronous_collectives_count_once():
    found = collectives.find_collectives(TPU_TEXT)
    assert [(item.kind, item.arrays) for item in found] == [
        ("reduce-scatter", (("bf16", (1024, 128)),)),
        ("reduce-scatter", (("f32", (8,)),)),
        ("all-gather", (("f32", (64, 128)),)),
        ("collective-permute", (("bf16", (2, 1, 16, 8)),)),
        ("all-reduce", (("f32", (4,)), ("s32", ()))),
    ]
    assert found[2].num_bytes == 64 * 128 * 4
    assert found[3].num_bytes == 2 * 16 * 8 * 2
    assert found[4].num_bytes == 4 * 4 + 4
    assert found[3].op_name == "jit(step)/conv"


# libtpu 0.0.42 compiled this for two slices of v5e:2x2; shortened. {1:4} is made up.
TWO_SLICES = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

ENTRY %main.5_spmd (param.1: bf16[1024,128]) -> bf16[1024,128] {
  %reduce-scatter.1 = bf16[256,128]{1,0} reduce-scatter(%x), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, \
use_global_device_ids=true, dimensions={0}, to_apply=%add
  %recv = (bf16[256,128]{1,0}, u32[], token[]) recv(%after-all), channel_id=6, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_host_transfer_rendezvous="all-reduce.177_0",_xla_megascale_reduce_operation="SUM",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send = (bf16[256,128]{1,0:T(8,128)(2,1)}, u32[], token[]) send(%reduce-scatter.1, %after-all), channel_id=7, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_host_transfer_rendezvous="all-reduce.177_0",_xla_megascale_reduce_operation="SUM",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}, metadata={op_name="jit(step)/sum"}
  %send-done = token[] send-done(%send), channel_id=7, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %recv-done = (bf16[256,128]{1,0}, token[]) recv-done(%recv), channel_id=6, is_host_transfer=true
  %send.2 = (f32[8]{0}, u32[], token[]) send(%y, %after-all), channel_id=9, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1:4}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"}
  %send.3 = (f32[8]{0}, u32[], token[]) send(%y, %after-all), channel_id=10, is_host_transfer=true
}
"""


def test_exchanges_between_slices_are_told_from_those_within():
    within, *between = collectives.find_collectives(TWO_SLICES)
    assert (within.kind, within.between_slices, within.devices) == ("reduce-scatter", False, 4)
    assert [item.between_slices for item in between] == [True, True]
    summed, gathered = between
    assert (summed.kind, summed.devices, summed.op_name) == ("all-reduce", 2, "jit(step)/sum")
    assert summed.num_bytes == summed.sent_bytes == 256 * 128 * 2  # 2 (n - 1) / n of the bytes is all of them
    assert (gathered.kind, gathered.devices) == ("all-gather", 4)


PIECES = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%fused_computation.1 (p: bf16[3,3,64,8]) -> bf16[3,3,64,64] {
  ROOT %all-gather.1 = bf16[3,3,64,64]{3,2,1,0} all-gather(%p), channel_id=5, replica_groups=[4,2]<=[8], dimensions={3}
}

%async_collective_fusion.2 (p: bf16[3,3,64,8]) -> bf16[3,3,64,64] {
  ROOT %all-gather.2 = bf16[3,3,64,64]{3,2,1,0} all-gather(%p), channel_id=5, replica_groups=[4,2]<=[8], dimensions={3}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %all-reduce.1 = f32[8]{0} all-reduce(%p), channel_id=6, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %all-reduce.2 = f32[8]{0} all-reduce(%p), channel_id=7, to_apply=%add
  %all-reduce.3 = f32[8]{0} all-reduce(%p), channel_id=8, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, to_apply=%add
  %all-reduce.4 = f32[8]{0} all-reduce(%p), channel_id=9, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1':(1)2}, to_apply=%add
}
"""


def test_pieces_of_one_collective_count_once_and_groups_are_read_in_any_form():
    found = collectives.find_collectives(PIECES)
    assert [(item.kind, item.devices) for item in found] == [
        ("all-gather", 2),
        ("all-reduce", 4),
        ("all-reduce", 8),
        ("all-reduce", 2),
        ("all-reduce", 4),
    ]


@pytest.mark.parametrize(
    ("kind", "fused", "sent"),
    [
        ("all-reduce", False, 2 * 3 * 40),
        ("all-gather", False, 3 * 40),
        ("reduce-scatter", True, 3 * 40),
        ("reduce-scatter", False, 3 * 160),  # its array is the part that a device keeps
        ("all-to-all", False, 3 * 40),
        ("collective-permute", False, 160),
    ],
)
def test_sent_bytes_go_around_a_ring(kind, fused, sent):
    item = collectives.Collective(kind, (("f32", (40,)),), "", devices=4, fused=fused)
    assert item.sent_bytes == sent


def test_the_collectives_of_a_compiled_program_are_found():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("devices",), ()))
    x = jax.ShapeDtypeStruct((16, 4), np.float32, sharding=split)
    programs = {
        "all-gather": jax.jit(lambda x: 2 * x, out_shardings=whole),
        "all-reduce": jax.jit(lambda x: x.sum(axis=0), out_shardings=whole),
        "collective-permute": jax.jit(lambda x: jax.numpy.roll(x, 2, axis=0), out_shardings=split),
    }
    for kind, program in programs.items():
        assert collectives.count_collectives(program.lower(x).compile().as_text()) == {kind: 1}
    nothing = jax.jit(lambda x: 2 * x, out_shardings=split).lower(x).compile().as_text()
    assert collectives.count_collectives(nothing) == {}


@pytest.mark.parametrize(("dtype", "size"), [("pred", 1), ("u8", 1), ("bf16", 2), ("s32", 4), ("f64", 8), ("s4", 0.5)])
def test_bytes_follow_the_type(dtype, size):
    assert collectives.Collective("all-reduce", ((dtype, (6, 10)),), "").num_bytes == 60 * size
