"""Headers of safetensors files: what is wrong with one is found before any tensor is read, and named."""

import json
import os
import struct

import pytest
from checkpoint_files import SDXL, hollow
from safetensors import SafetensorError, safe_open

from pipelines.errors import WeightsError, abbreviate
from pipelines.weights import header
from pipelines.weights.header import MAX_HEADER_BYTES, read_header

SOUND = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}


def write(path, text, data=bytes(12)):
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_tensor(path, data=bytes(12), **changes):
    """Write a file of one tensor, with some of its fields changed; None removes one."""
    fields = {key: value for key, value in (SOUND | changes).items() if value is not None}
    return write(path, json.dumps({"a.weight": fields}).encode(), data)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "F12"}, r"a\.weight has the dtype F12; known are F64"),
        ({"dtype": 7}, "has the dtype 7"),
        ({"dtype": None}, "lacks its dtype, shape or data_offsets"),
        ({"shape": [-2, -3]}, r"has the shape \[-2, -3\]; it must be a list of whole numbers"),
        ({"shape": [2.0, 3]}, r"has the shape \[2.0, 3\]"),
        ({"shape": [True, 6]}, r"has the shape \[True, 6\]"),
        ({"shape": "23"}, "has the shape 23"),
        ({"shape": [2**62] * 33}, r"has the shape \[4611686018427387904"),
        ({"shape": [2**62] * 32}, "has 12 bytes, but F16 of the shape"),
        ({"shape": [2, 4]}, r"has 12 bytes, but F16 of the shape \(2, 4\) needs 16"),
        ({"data_offsets": [-12, 0]}, r"has the data_offsets \[-12, 0\]; they must be two whole numbers"),
        ({"data_offsets": [0, 12, 24]}, "must be two whole numbers"),
        ({"data_offsets": [0, 12.0]}, "must be two whole numbers"),
        ({"data_offsets": [12, 0]}, "has -12 bytes"),
        ({"data_offsets": [4, 16], "data": bytes(16)}, "tensor a.weight follows a gap"),
        ({"data": bytes(13)}, "1 bytes after its last tensor; download it again"),
        ({"data": bytes(11)}, r"truncated: \d+ bytes of \d+; download it again"),
    ],
)
def test_a_wrong_tensor_is_refused_with_its_name_and_value(tmp_path, changes, reason):
    path = write_tensor(tmp_path / "a.safetensors", **changes)
    with pytest.raises(WeightsError, match=reason) as refused:
        read_header(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(SafetensorError):  # the library refuses the same files
        safe_open(path, framework="pt").__enter__()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"a": SOUND, "b": SOUND}, "tensor b overlaps another"),
        ({"a": SOUND, "__metadata__": {"number": 1}}, "metadata number is not a text"),
        ({"a": SOUND, "__metadata__": []}, "__metadata__ is not an object"),
        ({"a": SOUND | {"note": float("nan")}}, "not JSON"),
        ({"a": [1]}, "tensor a lacks its dtype"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, text, reason):
    with pytest.raises(WeightsError, match=reason):
        read_header(write(tmp_path / "a.safetensors", json.dumps(text).encode()))


@pytest.mark.parametrize(
    "text",
    [
        b'{"\\ud800":' + json.dumps(SOUND).encode() + b"}",
        json.dumps({"a": SOUND}).encode("utf-16-le"),
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=["half a pair", "UTF-16", "deep", "long number"],
)
def test_what_the_library_does_not_read_is_refused(tmp_path, text):
    with pytest.raises(WeightsError, match="its header is not JSON"):
        read_header(write(tmp_path / "a.safetensors", text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a":[' + b"[]," * 6_000_000 + b"0]}", f"up to {MAX_HEADER_BYTES} are read"),
        (b'{"a":[' + b"[]," * 5_000_000 + b"0]}", "more than 300000 lists and objects"),
    ],
    ids=["bytes", "elements"],
)
def test_a_header_that_would_fill_the_memory_is_not_parsed(tmp_path, monkeypatch, text, reason):
    path = write(tmp_path / "a.safetensors", text)
    monkeypatch.setattr(header, "json", None)
    with pytest.raises(WeightsError, match=reason):
        read_header(path)


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_pipe_or_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", "/dev/zero"):
        with pytest.raises(WeightsError, match="a regular file is required"):
            read_header(type(tmp_path)(path))


def test_long_names_and_control_characters_are_abbreviated(tmp_path):
    path = write(tmp_path / "a.safetensors", json.dumps({"x\n\x1b" * 2000: SOUND | {"dtype": "I3"}}).encode())
    with pytest.raises(WeightsError, match=r"tensor x\\n\\x1b") as refused:
        read_header(path)
    assert len(str(refused.value)) < 2000
    assert str(refused.value).isprintable()
    with pytest.raises(WeightsError, match="cannot be read") as refused:
        read_header(tmp_path / f"{'n' * 5000}.safetensors")
    assert len(str(refused.value)) < 300
    assert abbreviate("conv_in.weight") == "conv_in.weight"


def test_empty_tensors_and_every_dtype_of_the_format_are_read(tmp_path):
    fields = {
        "v_pred": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        "a": {"dtype": "F8_E8M0", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F4", "shape": [2, 3], "data_offsets": [3, 6]},
        "c": {"dtype": "I8", "shape": [], "data_offsets": [6, 7]},
        "ztsnr": {"dtype": "F32", "shape": [0], "data_offsets": [7, 7]},
    }
    header = read_header(write(tmp_path / "a.safetensors", json.dumps(fields).encode(), bytes(7)))
    assert {key: (ref.dtype, ref.shape) for key, ref in header.tensors.items()} == {
        key: (field["dtype"], tuple(field["shape"])) for key, field in fields.items()
    }


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.ckpt", b"anything", "pickle"),
        ("a.safetensors", b"PK\x03\x04rest of a zip of a pickle, 40 bytes long", "pickle"),
        ("a.safetensors", b"\x80\x02}q\x00rest of a pickle, long enough to read", "pickle"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.safetensors", b"<!doctype html><html><body>403</body></html>", "web page"),
        ("a.safetensors", b"", "empty"),
        ("a.safetensors", b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "GGUF"),
        ("a.safetensors", struct.pack("<Q", 9999) + b'{"a":', "truncated"),
        ("a.safetensors", struct.pack("<Q", 9) + b"{not json", "not JSON"),
    ],
)
def test_a_file_of_another_format_is_refused_by_name(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read_header(path)


def test_a_truncated_download_is_refused_before_it_is_loaded(tmp_path):
    path = hollow(tmp_path / "a.safetensors", SDXL)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(WeightsError, match="download it again"):
        read_header(path)
