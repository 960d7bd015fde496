"""Files written whole or not at all."""

import errno
import json
import pathlib

import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.files import write_json


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.5}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_json_that_cannot_be_written_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.5})

    def full(self, *_, **__):
        self.touch()
        raise OSError(number, "No room")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(UserError, match=f"^cannot write {path}: No room"):
        write_json(path, {"loss": 2.5})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"loss": 1.5}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_json_for_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="^cannot write .*scores.json: No such file or directory"):
        write_json(tmp_path / "none" / "scores.json", {})
