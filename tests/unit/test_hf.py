"""Datasets as parquet files: which files and classes, what is said without pyarrow, and with it the images."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdrun.core.errors import DataError
from kdrun.core.registry import lookup
from kdrun.core.schema import build
from kdrun.data.load import load_dataset
from kdrun.data.sets.hf import class_names, numbered, of_split


def config_of(path, root="data", **keys):
    keys = {"name": "hf", "path": str(path), "root": str(root), "size": 4, **keys}
    return build(lookup("dataset", "hf", "").Config, keys, "dataset")


def test_which_files_belong_to_a_split():
    names = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "test.parquet"]
    names += ["default/train/0000.parquet", "validation-00000-of-00001.parquet", "training.parquet"]
    files = [Path(name) for name in names]
    assert of_split(files, "train") == [files[0], files[1], files[3]]
    assert of_split(files, "test") == [files[2]]
    assert of_split(files, "val") == []


def test_classes():
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {}}}}
    assert class_names({b"huggingface": json.dumps(info).encode()}, "label") == ["cat", "dog"]
    assert class_names({b"huggingface": json.dumps(info).encode()}, "image") is None
    assert class_names({b"huggingface": b"{"}, "label") is class_names(None, "label") is None
    config = config_of("x")
    assert numbered({"train": [0, 2], "test": [1]}, None, config) == {
        "class_names": ["0", "1", "2"], "train": [0, 2], "test": [1],
    }  # fmt: skip
    assert numbered({"train": ["dog", "cat"], "test": ["dog"]}, None, config) == {
        "class_names": ["cat", "dog"], "train": [1, 0], "test": [1],
    }  # fmt: skip
    with pytest.raises(DataError, match=r"of the test images holds -1, which is no class \(0 to 1\); .*dataset\.test$"):
        numbered({"train": [0, 1], "test": [-1, -1]}, ["cat", "dog"], config)
    with pytest.raises(DataError, match=r"column label: None is neither a number nor a name"):
        numbered({"train": ["dog", None], "test": []}, None, config)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        DataError, match=r"^dataset=hf needs pyarrow, which is not installed: pip install 'kdrun\[hf\]'$"
    ):
        load_dataset(config_of(tmp_path, tmp_path / "data"))
    assert not list((tmp_path / "data").rglob("*.img"))


def test_images_and_labels_of_parquet_files(tmp_path):
    import pyarrow
    from pyarrow import parquet

    def write(name, grays, labels):
        images = []
        for gray in grays:
            buffer = io.BytesIO()
            Image.new("RGB", (6, 5), (gray,) * 3).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = pyarrow.table({"image": images, "label": labels})
        info = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
        parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "d" / name)

    (tmp_path / "d").mkdir()
    write("train-00000-of-00002.parquet", [10, 20], [0, 1])
    write("train-00001-of-00002.parquet", [30], [0])
    write("validation-00000-of-00001.parquet", [40, 50], [1, 0])
    got = load_dataset(config_of(tmp_path / "d", tmp_path / "data"))
    assert got.class_names == ("cat", "dog")
    assert (got.train_labels.tolist(), got.test_labels.tolist()) == ([0, 1, 0], [1, 0])
    np.testing.assert_array_equal(got.train_images[:, 0, 0, 0], [10, 20, 30])
    with pytest.raises(DataError, match=r"dataset\.label: .*no column 'fine' .*image, label"):
        load_dataset(config_of(tmp_path / "d", tmp_path / "data", label="fine"))
    damaged = shutil.copytree(tmp_path / "d", tmp_path / "damaged")
    (damaged / "train-00001-of-00002.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(
        DataError, match=r"^dataset\.path: .*train-00001-of-00002\.parquet: damaged, or no parquet file"
    ):
        load_dataset(config_of(damaged, tmp_path / "data"))
