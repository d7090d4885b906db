"""Tensors are read block by block, by threads, in the order of their files."""

import os
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import WeightsError
from pipelines.weights import reader, stream
from pipelines.weights.header import TensorRef, read_header
from pipelines.weights.load import load_weights as load_typed
from pipelines.weights.stream import BLOCK, Buffer, group_pieces, stream_tensors

load_weights: Any = load_typed  # tests look at the modules inside, which the protocols do not promise
CPU = torch.device("cpu")
SHAPES = {"a": (3,), "b": (40, 3), "c": (), "d": (7, 5), "e": (0, 4)}


class CountingEvent:
    """A copy's end that fails the test if a buffer is read into before its copies have been recorded."""

    def __init__(self):
        self.records = self.waits = 0

    def record(self):
        self.records += 1

    def wait(self):
        assert self.records == self.waits
        self.waits += 1


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 64)


@pytest.fixture
def asynchronous(monkeypatch):
    """The CPU in the part of a GPU: nothing is mapped, and tensors are copied first and cast then."""
    made = []

    def make_buffers(_):
        made.extend(
            Buffer(torch.empty(stream.BLOCK, dtype=torch.uint8), CountingEvent())
            for _ in range(stream.BUFFERS)
        )
        return tuple(made[-stream.BUFFERS :])

    monkeypatch.setattr(stream, "is_asynchronous", lambda _: True)
    monkeypatch.setattr(stream, "make_buffers", make_buffers)
    monkeypatch.setattr(reader, "can_map", lambda _: False)
    return made


def save(path, dtype=torch.float16):
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in SHAPES.items()}
    save_file(tensors, path)
    return tensors, list(read_header(path).tensors.values())


def read_all(refs, dtype, device=CPU) -> dict[str, Any]:
    return {
        refs[index].key: tensor for index, tensor in stream_tensors([(ref, dtype) for ref in refs], device)
    }


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_tensors_are_those_of_the_file_in_another_dtype(tmp_path, small_blocks, stored, dtype):
    tensors, refs = save(tmp_path / "a.safetensors", stored)
    read = read_all(refs, dtype)
    assert read.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert read[key].dtype == dtype
        assert torch.equal(read[key], tensor.to(dtype)), key


def test_a_device_that_copies_by_itself_gets_the_same_tensors(tmp_path, small_blocks, asynchronous):
    tensors, refs = save(tmp_path / "a.safetensors")
    read = read_all(refs, torch.bfloat16)
    assert all(torch.equal(read[key], tensor.bfloat16()) for key, tensor in tensors.items())
    blocks = len(list(group_pieces((ref, False) for ref in sorted(refs, key=lambda ref: ref.start))))
    events = [buffer.copied for buffer in asynchronous]
    assert sum(event.waits for event in events) == blocks > len(events)
    assert all(event.records == event.waits for event in events)


def test_a_model_is_the_same_by_way_of_a_device_that_copies_by_itself(demo_file, monkeypatch, asynchronous):
    monkeypatch.setattr(stream, "BLOCK", 1 << 20)
    arrived = [load_weights(demo_file, dtype=torch.float16)]
    assert sum(buffer.copied.waits for buffer in asynchronous) > stream.BUFFERS
    monkeypatch.undo()
    arrived.append(load_weights(demo_file, dtype=torch.float16))
    states = [
        [network.module.state_dict() for network in (each.unet, each.vae, *each.text_encoders)]
        for each in arrived
    ]
    for read, mapped in zip(*states, strict=True):
        assert read.keys() == mapped.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in mapped.items())
        assert all(read[name].stride() == tensor.stride() for name, tensor in mapped.items())


def test_another_device_gets_tensors_that_were_cast_before(tmp_path, small_blocks, monkeypatch):
    tensors, refs = save(tmp_path / "a.safetensors")
    casts, convert = [], stream.convert
    monkeypatch.setattr(
        stream, "convert", lambda source, target: casts.append(target.device) or convert(source, target)
    )
    read = read_all(refs, torch.bfloat16, torch.device("meta"))
    assert {key: tensor.shape for key, tensor in read.items()} == {k: t.shape for k, t in tensors.items()}
    assert {tensor.dtype for tensor in read.values()} == {torch.bfloat16}
    assert set(casts) == {CPU}


def test_tensors_are_yielded_in_the_order_of_the_file(tmp_path, small_blocks):
    _, refs = save(tmp_path / "a.safetensors")
    refs.sort(key=lambda ref: ref.key, reverse=True)
    starts = [refs[index].start for index, _ in stream_tensors([(ref, None) for ref in refs], CPU)]
    assert starts == sorted(starts)
    assert len(starts) == len(SHAPES)


def test_a_tensor_that_is_only_read_ahead_is_not_in_memory(tmp_path):
    _, refs = save(tmp_path / "a.safetensors")
    assert set(read_all(refs, None).values()) == {None}


def test_blocks_have_no_gaps_and_are_not_larger_than_a_buffer(tmp_path, small_blocks):
    path, other = tmp_path / "a", tmp_path / "b"
    sizes = [
        (path, 0, 10),
        (path, 10, 50),
        (path, 50, 70),
        (path, 80, 90),
        (path, 90, 250),
        (other, 250, 260),
    ]
    refs = [TensorRef(file, str(start), "U8", (end - start,), start, end) for file, start, end in sizes]
    blocks = [
        [(piece.start, piece.end) for piece in block] for block in group_pieces((ref, False) for ref in refs)
    ]
    # full; full; a gap; and one that is split, after which another file begins
    expected = [
        [(0, 10), (10, 50)],
        [(50, 70)],
        [(80, 90)],
        [(90, 154)],
        [(154, 218)],
        [(218, 250)],
        [(250, 260)],
    ]
    assert blocks == expected


def test_tensors_may_begin_anywhere(tmp_path, small_blocks):
    values = torch.arange(100).half()
    content = b"abc" + values.numpy().tobytes()
    (tmp_path / "a").write_bytes(content)
    refs = [TensorRef(tmp_path / "a", "text", "U8", (3,), 0, 3)]
    refs.append(TensorRef(tmp_path / "a", "values", "F16", (100,), 3, len(content)))
    read = read_all(refs, torch.float32)
    assert read["text"].tolist() == list(b"abc")
    assert torch.equal(read["values"], values.float())


@pytest.mark.parametrize(
    ("before", "after"), [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)]
)
def test_every_half_is_rounded_as_torch_does(before, after):
    source = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(before)
    target = torch.empty(len(source), dtype=after)
    stream.convert(source, target)
    expected = source.to(after)
    is_nan = source.isnan()
    assert torch.equal(target[~is_nan], expected[~is_nan])
    assert target[is_nan].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_a_file_that_became_shorter_is_refused(tmp_path, dtype):
    _, refs = save(tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", max(ref.end for ref in refs) - 1)
    with pytest.raises(WeightsError, match=r"a\.safetensors: it became shorter while it was read"):
        read_all(refs, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    _, refs = save(path)
    reading = stream_tensors([(ref, dtype) for ref in refs], CPU)
    next(reading)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(WeightsError, match=r"a\.safetensors: it changed while it was read"):
        list(reading)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(stream, "BUFFERS", 1)
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    (_, refs), _ = save(path), save(other)
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    reading = stream_tensors([(ref, torch.float32) for ref in refs], CPU)
    next(reading)
    other.rename(path)
    with pytest.raises(WeightsError, match=r"a\.safetensors: it changed while it was read"):
        list(reading)


def test_a_file_that_is_gone_is_refused(tmp_path):
    _, refs = save(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"a\.safetensors: cannot be read: No such file"):
        read_all(refs, torch.float32)


def test_reading_can_be_given_up(tmp_path, small_blocks):
    _, refs = save(tmp_path / "a.safetensors")
    reading = stream_tensors([(ref, torch.float32) for ref in refs], CPU)
    next(reading)
    reading.close()
    assert list(reading) == []


def test_only_a_gpu_copies_by_itself():
    assert stream.is_asynchronous(torch.device("cuda", 1))
    assert not stream.is_asynchronous(CPU)
    assert not stream.is_asynchronous(torch.device("mps"))


def test_only_a_cpu_can_map_files():
    assert reader.can_map(CPU)
    assert not reader.can_map(torch.device("cuda"))


def test_buffers_are_page_locked_for_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(stream, "allocate_pinned", lambda size: asked.append(size) or torch.empty(1))
    monkeypatch.setattr(torch.cuda, "Event", CountingEvent)
    buffers = stream.make_buffers(torch.device("cuda"))
    assert asked == [stream.BLOCK] * len(buffers)
    assert all(buffer.copied is not None for buffer in buffers)
    assert all(buffer.copied is None for buffer in stream.make_buffers(CPU))
    assert len(asked) == len(buffers)


def test_memory_is_plain_where_none_can_be_page_locked(monkeypatch):
    plain = torch.empty

    def refuse(*args, pin_memory=False, **options):
        if pin_memory:
            raise RuntimeError("no more page-locked memory")
        return plain(*args, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    assert stream.allocate_pinned(8).shape == (8,)


def test_the_end_of_a_copy_is_that_on_the_devices_own_stream(monkeypatch):
    recorded = []

    class Event:
        def record(self, on):
            recorded.append(on)

        def synchronize(self):
            recorded.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", partial(str))
    event = stream.CudaCopyEvent(torch.device("cuda", 1))
    event.record()
    event.wait()
    assert recorded == ["cuda:1", "waited"]


def test_a_file_is_read_once_by_networks_that_are_filled_together(demo_file, monkeypatch):
    ranges = []
    read_block = stream._read_block

    def note(block, buffer, state):
        ranges.append((block[0].start, block[-1].end))
        read_block(block, buffer, state)

    monkeypatch.setattr(stream, "_read_block", note)
    load_weights(demo_file)
    ranges.sort()
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert sum(end - start for start, end in ranges) > 0.9 * demo_file.stat().st_size


def test_the_demo_is_loaded_as_the_library_reads_it(demo_file, demo):
    stored = load_file(demo_file)
    key = "model.diffusion_model.out.2.weight"
    assert torch.equal(demo.weights.unet.module.state_dict()["conv_out.weight"], stored[key].float())


def test_what_is_mapped_is_read_ahead_and_not_copied(tmp_path, monkeypatch):
    path = tmp_path / "mapped.safetensors"
    save_file({"a": torch.ones(100), "b": torch.ones(100)}, path)
    refs = sorted(read_header(path).tensors.values(), key=lambda ref: ref.start)
    asked, buffers = [], (Buffer(torch.zeros(BLOCK, dtype=torch.uint8)),)
    monkeypatch.setattr(stream, "read_ahead", lambda _, start, end: asked.append((start, end)) or True)
    assert [tensor for _, tensor in stream_tensors([(ref, None) for ref in refs], CPU, buffers)] == [
        None,
        None,
    ]
    assert asked == [(refs[0].start, refs[1].end)]
    assert not buffers[0].content.any()
    monkeypatch.setattr(stream, "read_ahead", lambda *_: False)  # where the system cannot be asked to
    assert len(list(stream_tensors([(ref, None) for ref in refs], CPU, buffers))) == 2
    assert buffers[0].content.any()
