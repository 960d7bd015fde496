"""PyTorch files are read without PyTorch; files that need more than tensors are refused before any code runs."""

import io
import os
import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.readers.torch_file import read_torch_file

DATA = pathlib.Path(__file__).parent / "data"  # written by PyTorch, see make_torch_files.py there
LEGACY_HEAD = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]


def expected():
    shared = np.arange(24, dtype=np.float32)
    return {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "parameter": np.arange(4, dtype=np.float32),
        "transposed": shared.reshape(4, 6).T,
        "strided": shared[1::5],
        "offset": shared[20:],
        "half": np.arange(5, dtype=np.float16) / np.float16(4),
        "bfloat16": np.asarray(jnp.asarray([1.0, -2.5, 3e38, 2.0**-126], jnp.bfloat16).astype(jnp.float32)),
        "double": np.arange(3) / 3,
        "count": np.asarray(2**40),
        "bytes": np.asarray([0, 255], np.uint8),
        "flags": np.asarray([True, False]),
        "empty": np.empty((0, 3), np.float32),
    }


@pytest.mark.parametrize("file", ["zip.pth", "legacy.pth", "protocol4.pth"])
def test_every_kind_of_tensor_is_read(file):
    arrays = read_torch_file(DATA / file)
    wanted = expected()
    assert list(arrays) == list(wanted)
    for name, array in arrays.items():
        assert array.dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.parametrize("file", ["nested_zip.pth", "nested_legacy.pth"])
def test_the_state_dict_of_a_training_checkpoint_is_read(file):
    arrays = read_torch_file(DATA / file)
    assert list(arrays) == ["0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"]
    np.testing.assert_array_equal(arrays["0.weight"], [1, 2])


def rewrite(source, target, change, **options):
    """Copies an archive and applies `change(name, content)` to its entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_a_big_endian_file_is_read(tmp_path):
    sizes = {"0": 4, "2": 4, "3": 2, "4": 2, "5": 8, "6": 8}  # of the numbers in each storage

    def swap(name, content):
        size = sizes.get(name.rpartition("/data/")[2])
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(content, f"u{size}").byteswap().tobytes() if size else content

    arrays = read_torch_file(rewrite(DATA / "zip.pth", tmp_path / "big.pth", swap))
    for name in ("plain", "transposed", "half", "bfloat16", "double", "count"):
        np.testing.assert_array_equal(arrays[name], expected()[name], err_msg=name)


def test_safetensors_files_of_float32_and_bfloat16_are_read(tmp_path):
    arrays = {f"{i}.weight": np.full((2, i), i, np.float32) for i in range(9)} | {"steps": np.asarray(3, np.int64)}
    safetensors.numpy.save_file(arrays, tmp_path / "network.safetensors")
    read = read_torch_file(tmp_path / "network.safetensors")
    assert list(read) == sorted(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    safetensors.flax.save_file({"half": jnp.asarray([1.5, -2.0], jnp.bfloat16)}, tmp_path / "half.safetensors")
    np.testing.assert_array_equal(read_torch_file(tmp_path / "half.safetensors")["half"], np.float32([1.5, -2.0]))


# ---- Malicious files ----


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def as_zip(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


def as_legacy(content):
    return b"".join(pickle.dumps(part, protocol=2) for part in LEGACY_HEAD) + content + pickle.dumps([], protocol=2)


def global_call(module, name, argument):
    """Protocol 4: the result of module.name(argument), where the name may have dots."""
    text = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name, argument)]
    return b"\x80\x04" + text[0] + text[1] + b"\x93" + text[2] + b"\x85R."


def attacks(marker):
    command = f"touch {marker}"
    return {
        "call": pickle.dumps({"weight": Call(os.system, command)}, protocol=2),
        "call in protocol 4": pickle.dumps({"weight": Call(os.system, command)}, protocol=4),
        "eval": pickle.dumps({"weight": Call(eval, f"open({str(marker)!r}, 'w')")}, protocol=2),
        "getattr": pickle.dumps({"weight": Call(getattr, "", "join")}, protocol=2),
        "dotted": global_call("collections", "OrderedDict.fromkeys", command),
        "dotted into a module": global_call("torch._utils", "_rebuild_tensor_v2.__globals__", command),
        "the reader itself": global_call("deeplab_jax.pretrained.readers.torch_file", "os.system", command),
        "INST": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\nU" + bytes([len(command)]) + command.encode() + b"o.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\nU" + bytes([len(command)]) + command.encode() + b"\x85\x81.",
        "extension registry": b"\x80\x02\x82\x01.",
        "call of a dtype": b"\x80\x02ctorch\nFloatStorage\nU\x01f\x85R.",
    }


@pytest.mark.parametrize("form", [as_zip, as_legacy])
@pytest.mark.parametrize("attack", attacks("x"))
def test_a_malicious_file_is_refused_and_nothing_runs(form, attack, tmp_path):
    marker = tmp_path / "it_ran"
    path = tmp_path / "weights.pth"
    path.write_bytes(form(attacks(marker)[attack]))
    with pytest.raises(UserError, match="which could run code, so it is refused") as caught:
        read_torch_file(path)
    assert not marker.exists()
    assert "\n" not in str(caught.value)


def test_the_attack_works_with_pickle(tmp_path):
    marker = tmp_path / "it_ran"
    pickle.loads(attacks(marker)["call"])
    assert marker.exists()


def test_the_refusal_names_the_function(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(as_zip(attacks("x")["call"]))
    with pytest.raises(UserError, match=r"weights.pth needs 'posix.system', which could run code"):
        read_torch_file(path)


def test_attributes_of_supported_functions_cannot_be_set(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(as_zip(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x08__name__U\x01xsb."))
    with pytest.raises(UserError, match="sets attributes of a StandIn"):
        read_torch_file(path)


# ---- Damaged files ----


def tensor_pickle(size, offset, shape, strides, key="0"):
    """A state dict of one float32 tensor in protocol 2, as PyTorch writes it."""

    class Storage:
        pass

    class Rebuild:
        def __reduce__(self):
            return pickle.Pickler, (Storage(), offset, shape, strides, False, {})

    class Writer(pickle._Pickler):  # the one of pure Python, whose globals can be renamed
        def persistent_id(self, obj):
            return ("storage", Writer, key, "cpu", size) if isinstance(obj, Storage) else None

        def save_global(self, obj, name=None):
            module, name = ("torch", "FloatStorage") if obj is Writer else ("torch._utils", "_rebuild_tensor_v2")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())

        dispatch = pickle._Pickler.dispatch | {type: save_global}

    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump({"weight": Rebuild()})
    return buffer.getvalue()


def tensor_file(path, *numbers, content=bytes(24), **fields):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(*numbers, **fields))
        archive.writestr("archive/data/0", content)
    return path


def test_a_tensor_may_fill_its_storage(tmp_path):
    read = read_torch_file(tensor_file(tmp_path / "a.pth", 6, 0, (2, 3), (3, 1)))
    np.testing.assert_array_equal(read["weight"], np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((6, 0, (3, 3), (3, 1)), "reaches beyond its 6 numbers"),
        ((6, 1, (2, 3), (3, 1)), "reaches beyond its 6 numbers"),
        ((6, 0, (2, 2), (5, 1)), "reaches beyond its 6 numbers"),
        ((6, 0, (2**40, 2**30), (0, 0)), "reaches beyond its 6 numbers"),
        ((6, 0, (2, 3), (-3, 1)), "has the impossible shape"),
        ((6, -1, (2, 3), (3, 1)), "has the impossible shape"),
        ((6, 0, (2, 3), (1,)), "has the impossible shape"),
        ((6, 0, (2.0, 3), (3, 1)), "has the impossible shape"),
        ((6, 0, (1,) * 70, (1,) * 70), "impossible shape"),
        ((6, 0, (1, 1), (2**80, 1)), "impossible shape"),
        ((7, 0, (2, 3), (3, 1)), "the numbers of 'weight' are truncated"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(numbers, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_torch_file(tensor_file(tmp_path / "a.pth", *numbers))


@pytest.mark.parametrize("file", ["zip.pth", "legacy.pth"])
def test_a_truncated_file_is_refused_in_one_line(file, tmp_path):
    content = (DATA / file).read_bytes()
    path = tmp_path / file
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="is not a file of PyTorch weights") as caught:
            read_torch_file(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["zip.pth", "legacy.pth", "nested_legacy.pth"])
def test_damaged_files_raise_only_user_errors(file, tmp_path):
    content = (DATA / file).read_bytes()
    path = tmp_path / file
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_torch_file(path)
        except UserError:
            refused += 1
    assert refused > 20


def test_a_compressed_archive_is_refused_without_unpacking(tmp_path):
    bomb = rewrite(
        DATA / "zip.pth",
        tmp_path / "bomb.pth",
        lambda name, content: bytes(10**7) if name.endswith("/data/0") else content,
        compression=zipfile.ZIP_DEFLATED,
    )
    assert bomb.stat().st_size < 10**5
    with pytest.raises(UserError, match="the archive is compressed"):
        read_torch_file(bomb)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """A zip bomb without compression: many directory entries that point to the same bytes."""
    path = tmp_path / "overlap.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 4000)
        first = archive.infolist()[0]
        for i in range(50):
            entry = zipfile.ZipInfo(f"archive/data/{i}")
            for field in ("header_offset", "CRC", "compress_size", "file_size", "compress_type", "external_attr"):
                setattr(entry, field, getattr(first, field))
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive._didModify = True
    with pytest.raises(UserError, match="entries are larger than the file"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a zip archive nor a pickle"),
        (b"<html>404</html>", "neither a zip archive nor a pickle"),
        (pickle.dumps({"a": 1}, protocol=2), "a pickle, but PyTorch did not write it"),
        (as_zip(pickle.dumps({}, protocol=2)), "does not contain a state dict"),
        (as_zip(pickle.dumps([1], protocol=2)), "does not contain a state dict"),
        (as_zip(pickle.dumps({"a": 1}, protocol=2)), "entry 'a' is not a tensor"),
        (as_zip(pickle.dumps({"state_dict": {3: 1}}, protocol=2)), "entry 3 is not a tensor"),
        (as_zip(tensor_pickle(6, 0, (6,), (1,))), "has no data/0"),
        (as_zip(b"\x80\x02]}K\x01s."), "its pickle is invalid"),
        (as_zip(b"\x80\x02h\x07."), "its pickle is invalid"),
        (as_zip(b"\x80\x02."), "its pickle is invalid"),
        (as_zip(b"\x80\x02e."), "its pickle is invalid"),
        (as_legacy(tensor_pickle(6, 0, (6,), (1,))), "does not match its tensors"),
    ],
)
def test_files_without_a_state_dict_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)


def test_damaged_safetensors_files_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="weights.safetensors is damaged: .*; expected a safetensors file"):
        read_torch_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read .*/none.pth: No such file"):
        read_torch_file(tmp_path / "none.pth")
