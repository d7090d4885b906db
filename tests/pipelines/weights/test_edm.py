import pytest
import torch
from checkpoint_files import SDXL, save

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import Checkpoint, open_checkpoint
from pipelines.weights.detect import detect
from pipelines.weights.edm import _decode_float, read_sigma_range


def write(path, low, high):
    sigmas = {"edm_vpred.sigma_min": low, "edm_vpred.sigma_max": high}
    return save(path, {key: value for key, value in sigmas.items() if value is not None})


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_both_sigmas_are_read_in_any_float_dtype(tmp_path, dtype, shape):
    low, high = (torch.full(shape, value).to(dtype) for value in (0.0117, 87.5))
    path = write(tmp_path / "a.safetensors", low, high)
    assert read_sigma_range(open_checkpoint(path)) == (low.double().item(), high.double().item())


def test_every_8_bit_float_is_read_as_torch_reads_it():
    for name, dtype in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        expected = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        values = torch.tensor([_decode_float(name, bytes([byte])) for byte in range(256)])
        assert torch.allclose(values, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(None, 80.0, (0.002, 80.0)), (0.01, None, (0.01, 120.0)), (None, None, (0.002, 120.0))],
)
def test_an_absent_or_empty_sigma_has_the_value_of_cosxl(tmp_path, low, high, expected):
    for absent in (None, torch.tensor([])):
        tensors = [absent if value is None else torch.tensor(value).double() for value in (low, high)]
        if tensors != [None, None]:
            path = write(tmp_path / "a.safetensors", *tensors)
            assert read_sigma_range(open_checkpoint(path)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        (torch.tensor(0.0), torch.tensor(80.0), "0 to 80"),
        (torch.tensor(-1.0), torch.tensor(80.0), "-1 to 80"),
        (torch.tensor(80.0), torch.tensor(80.0), "80 to 80"),
        (torch.tensor(0.1), torch.tensor(torch.inf), "0.1 to inf"),
        (torch.tensor(torch.nan), torch.tensor(80.0), "nan to 80"),
        (torch.tensor(1), torch.tensor(80.0), "dtype I64"),
        (torch.tensor(0.1), torch.tensor([80.0, 90.0]), "shape"),
    ],
)
def test_a_range_that_no_table_can_have_is_refused(tmp_path, low, high, reason):
    path = write(tmp_path / "a.safetensors", low, high)
    with pytest.raises(WeightsError, match=reason):
        read_sigma_range(open_checkpoint(path))


def test_a_schedulers_range_is_that_of_its_folder(tmp_path):
    config = {"sigma_min": 0.01, "sigma_max": 60}
    assert read_sigma_range(Checkpoint(tmp_path, "diffusers", {}, scheduler=config)) == (0.01, 60.0)
    for value, text in (("many", "many"), (10**400, "1000"), (True, "True")):
        with pytest.raises(WeightsError, match=f"sigma_max is '{text}"):
            read_sigma_range(Checkpoint(tmp_path, "diffusers", {}, scheduler={"sigma_max": value}))


def test_only_edm_models_have_a_range(tmp_path):
    tensors = {key: torch.zeros(1).half().expand(shape) for key, shape in SDXL.items()}
    sigmas = {"edm_vpred.sigma_max": torch.tensor(80.0)}
    assert detect(save(tmp_path / "a.safetensors", tensors)).sigma_range is None
    assert detect(save(tmp_path / "b.safetensors", tensors | sigmas)).sigma_range == (0.002, 80.0)
