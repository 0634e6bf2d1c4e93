"""Files of tensors from elsewhere: what is read, and that nothing in them is ever run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pipeline.base.errors import InputError
from pipeline.models.convert.foreign_file import read_tensors

TENSORS = {"a/b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "c": torch.ones(1, dtype=torch.float16)}


def npz(**arrays: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def torch_file(tree: object, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(tree, sink, **options)
    return sink.getvalue()


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("w.npz", npz(**{name: tensor.numpy() for name, tensor in TENSORS.items()})),
        ("w.safetensors", save(TENSORS)),
        ("w.bin", torch_file(TENSORS)),
        ("w.pth", torch_file({"model": TENSORS})),
        ("w.pt", torch_file({"state_dict": TENSORS}, _use_new_zipfile_serialization=False)),
    ],
)
def test_each_kind_of_file_is_read(name: str, data: bytes) -> None:
    found = read_tensors(data, name)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in TENSORS.items())


def test_big_endian_and_reversed_arrays_are_read() -> None:
    array = np.arange(4, dtype=">f4")[::-1]
    assert read_tensors(npz(a=array), "w.npz")["a"].tolist() == [3, 2, 1, 0]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for name, data in {
        "w.npz": npz(a=np.array([Bomb(touched)], dtype=object)),
        "w.pth": torch_file({"a": Bomb(touched)}),
        "w.bin": pickle.dumps(Bomb(touched)),
        "w.pt": torch_file({"a": Bomb(touched)}, _use_new_zipfile_serialization=False),
        "w.safetensors": pickle.dumps(Bomb(touched)),
    }.items():
        with pytest.raises(InputError, match=f"^{name} is no "):
            read_tensors(data, name)
    assert not touched.exists()


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_damaged_files_are_refused_in_one_line(name: str, cut: int) -> None:
    whole = {"w.npz": npz(a=np.zeros(9)), "w.safetensors": save(TENSORS), "w.bin": torch_file(TENSORS)}[name]
    with pytest.raises(InputError, match=f"^{name} is no ") as caught:
        read_tensors(whole[:cut], name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("tree", [[TENSORS["c"]], {"a": 3}, TENSORS["c"], {"model": {"epoch": 3}}])
def test_more_or_less_than_tensors_by_name_is_refused(tree: object) -> None:
    with pytest.raises(InputError, match=r"w\.pth holds more than tensors by name"):
        read_tensors(torch_file(tree), "w.pth")


def test_arrays_of_text_and_other_suffixes_are_refused() -> None:
    with pytest.raises(InputError, match=r"w\.npz: a is of <U3"):
        read_tensors(npz(a=np.array(["abc"])), "w.npz")
    with pytest.raises(InputError, match=r"weights\.h5: files of this kind are not read"):
        read_tensors(b"", "weights.h5")
