from dataclasses import replace
from io import BytesIO

import pytest
import torch
import upscaler_files
from drive import run_job
from jobs import make_job
from PIL import Image
from safetensors.torch import load_file, save_file
from waiting import wait_until

from demo.checkpoint import build_demo
from pipelines import previewer
from pipelines.errors import WeightsError
from pipelines.image.tiny_decoder import TinyVae
from pipelines.job import RgbImage, UpscaleJob
from pipelines.sampling.schedules import karras
from pipelines.weights.architecture import METADATA_KEY
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.header import read_header
from pipelines.weights.networks import build_tiny_decoder
from server.cli.bootstrap import build_engine
from server.cli.check import check_setup
from server.config.catalog import Catalog, ModelEntry, single_model_catalog
from server.config.profiles import Dialect
from server.config.resources import configs
from server.config.settings import Settings, SpeedSettings
from server.config.toml import ConfigError
from server.engine.loading import load_runner
from server.engine.model import detect_model, format_card
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request


def build_catalog(file, profile):
    return Catalog(default="a", models={"a": ModelEntry(path=file, profile=profile)})


def test_a_model_is_detected_from_its_file_and_gets_its_profile(demo_file):
    model = detect_model(single_model_catalog(demo_file))
    assert (model.profile.name, model.detection.prediction, model.detection.zsnr) == ("demo", "v", True)
    assert model.card()["hash"] == model.fingerprint
    assert str(demo_file.parent) not in str(model.card())


def test_the_catalog_can_name_the_profile(demo_file):
    assert detect_model(build_catalog(demo_file, "noobai-vpred")).profile.name == "noobai-vpred"
    with pytest.raises(ConfigError, match="noobai-vpred"):
        detect_model(build_catalog(demo_file, "unknown"))


def test_an_inpainting_model_cannot_be_the_main_model(tmp_path):
    with pytest.raises(WeightsError, match="inpainting model"):
        detect_model(
            single_model_catalog(build_demo(tmp_path / "naiad-demo-inpainting.safetensors", channels=9))
        )


def test_the_card_shows_the_dialect(demo_file):
    model = detect_model(single_model_catalog(demo_file))
    assert model.card()["dialect"] is None
    dialect = Dialect(artist="by {name}", renamed_tags="nai", tags={"masterpiece": "best quality"})
    for default, word in ((False, "off"), (True, "on")):
        profile = model.profile.model_copy(
            update={"dialect": dialect.model_copy(update={"default": default})}
        )
        card = replace(model, profile=profile).card()
        assert card["dialect"] == {
            "default": default,
            "artist": "by {name}",
            "renamed_tags": "nai",
            "tags": {"masterpiece": "best quality"},
        }
        assert format_card(card).splitlines()[-1] == (
            f"  dialect {word} by default: artist:name as 'by name', renamed tags by NAI's names, "
            "other tags: 1, which --json lists"
        )


def test_the_card_names_the_inpainting_method(demo_file, tmp_path):
    nine = build_demo(tmp_path / "nine.safetensors", channels=9)
    catalog = Catalog(default="m", models={"m": ModelEntry(path=demo_file, inpainting=nine)})
    assert detect_model(catalog).card()["inpainting"] == "network"
    assert detect_model(single_model_catalog(demo_file)).card()["inpainting"] == "blend"


def test_the_upscaler_is_named_hashed_and_checked(demo_file, tmp_path):
    network, wrong = tmp_path / "anime.safetensors", tmp_path / "wrong.safetensors"
    save_file(upscaler_files.random_network().state_dict(), network)
    save_file({"a": torch.zeros(1)}, wrong)
    catalog = single_model_catalog(demo_file).model_copy(update={"upscaler": network})
    model = detect_model(catalog)
    assert model.card()["upscaler"] == "anime.safetensors"
    assert model.files == {"upscaler": fingerprint(network)}
    assert "upscaler: anime.safetensors, 4 times" in list(check_setup(catalog, Settings(metadata="plain")))
    runner = load_runner(model, Settings(device="cpu"))
    (image,) = run_job(runner, UpscaleJob(RgbImage(8, 8, bytes(192)), 16, 16)).images
    assert image.shape == (16, 16, 3)
    with pytest.raises(ConfigError, match=r"wrong\.safetensors: not an ESRGAN-family upscaler"):
        list(check_setup(catalog.model_copy(update={"upscaler": wrong}), Settings(metadata="plain")))


def test_a_preview_decoder_is_used_and_checked_but_no_file_of_the_images(
    demo_file, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(previewer, "SHARE", float("inf"))
    tiny, wrong = tmp_path / "tiny.safetensors", tmp_path / "wrong.safetensors"
    generator = torch.Generator().manual_seed(0)
    shapes = build_tiny_decoder(8).state_dict()
    random = {
        f"decoder.{name}": torch.rand(weight.shape, generator=generator) / max(1, weight[0].numel())
        for name, weight in shapes.items()
    }
    save_file(random, tiny)
    save_file({"a": torch.zeros(1)}, wrong)

    def build(path):
        return Catalog(default="a", models={"a": ModelEntry(path=demo_file, preview_decoder=path)})

    model = detect_model(build(tiny))
    assert model.files == {}
    assert model.decoder_files == {"preview_decoder": fingerprint(tiny)}
    assert model.file_fingerprints == {demo_file: fingerprint(demo_file), tiny: fingerprint(tiny)}
    assert model.card()["preview_decoder"] == "tiny.safetensors"
    assert "  preview decoder: tiny.safetensors" in format_card(model.card()).splitlines()
    assert "OK" in list(check_setup(build(tiny), Settings(metadata="plain")))
    with pytest.raises(ConfigError, match=r"wrong\.safetensors: not a TAESD-type decoder"):
        list(check_setup(build(wrong), Settings(metadata="plain")))
    with pytest.raises(ConfigError, match=r"absent\.safetensors: no such file"):
        detect_model(build(tmp_path / "absent.safetensors"))
    settings = Settings(device="cpu", speed=SpeedSettings(decoder="tiny"))
    runner, previews = load_runner(model, settings), []
    assert isinstance(runner.pipeline._vae._vae, TinyVae)
    assert "preview_decoder: tiny.safetensors does not decode as the VAE does" in caplog.text
    (image,) = run_job(runner, make_job(256, 256, steps=6), previews.append).images
    assert image.shape == (256, 256, 3)
    wait_until(lambda: previews)
    assert Image.open(BytesIO(previews[0].jpeg)).size == (128, 128)


def test_a_decoder_of_pictures_that_a_model_lacks_is_refused(demo_file):
    settings = Settings(device="cpu", metadata="plain", speed=SpeedSettings(decoder="tiny"))
    catalog = Catalog(default="a", models={"a": ModelEntry(path=demo_file)})
    for start in (
        lambda: build_engine(detect_model(catalog), settings),
        lambda: list(check_setup(catalog, settings)),
    ):
        with pytest.raises(
            ConfigError, match=r"tiny: a has no preview_decoder; set speed\.decoder to vae, or"
        ):
            start()


def test_a_vae_that_does_not_decode_pictures_is_not_compiled(demo_file):
    speed = SpeedSettings(decoder="tiny", compile_vae="on")
    catalog = Catalog(default="a", models={"a": ModelEntry(path=demo_file)})
    with pytest.raises(ConfigError, match=r"speed\.compile_vae = on: speed\.decoder = tiny decodes instead"):
        build_engine(detect_model(catalog), Settings(device="cpu", speed=speed))


def check(catalog):
    return list(check_setup(catalog, Settings(metadata="plain")))


def test_check_refuses_what_a_load_would(demo_file, tmp_path):
    tensors, metadata = load_file(demo_file), dict(read_header(demo_file).metadata)
    half = {key: tensor for key, tensor in tensors.items() if ".output_blocks." not in key}
    save_file(half, tmp_path / "half.safetensors", metadata)
    bare = {key: tensor for key, tensor in tensors.items() if not key.startswith("first_stage_model.")}
    save_file(bare, tmp_path / "bare.safetensors", metadata)
    save_file({"decoder.conv_in.weight": torch.zeros(96, 4, 3, 3)}, tmp_path / "vae.safetensors")
    half_entry, bare_entry = (ModelEntry(path=tmp_path / f"{name}.safetensors") for name in ("half", "bare"))
    for entry, reason in (
        (half_entry, r"half\.safetensors: \d+ missing"),
        (bare_entry, r"bare\.safetensors: it contains no vae"),
        (
            bare_entry.model_copy(update={"vae": tmp_path / "vae.safetensors"}),
            r"vae\.safetensors: \d+ missing",
        ),
        (ModelEntry(path=demo_file, text_encoders=(demo_file,) * 3), "3 text encoders are given"),
        (ModelEntry(path=demo_file, clip_skip=1), "clip_skip = 1 is set, but SDXL"),
    ):
        with pytest.raises(ConfigError, match=reason):
            check(Catalog(default="m", models={"m": entry}))
    entry = bare_entry.model_copy(update={"vae": demo_file})
    assert check(Catalog(default="m", models={"m": entry}))[-1] == "OK"


def test_a_path_that_is_too_long_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="no such file") as error:
        detect_model(single_model_catalog(tmp_path / ("n" * 5000)))
    assert len(str(error.value)) < 300


def test_the_inpainting_unet_must_have_nine_channels(demo_file):
    catalog = Catalog(default="m", models={"m": ModelEntry(path=demo_file, inpainting=demo_file)})
    with pytest.raises(WeightsError, match="its UNet has 4 input channels; one for inpainting has 9"):
        detect_model(catalog)


def save_without_markers(demo_file, path, others=None):
    """Save the demo as a merge tool does: no markers but `others`, no metadata but the architecture."""
    tensors = {key: tensor for key, tensor in load_file(demo_file).items() if key not in ("v_pred", "ztsnr")}
    metadata = {METADATA_KEY: read_header(demo_file).metadata[METADATA_KEY]}
    save_file(tensors | (others or {}), path, metadata)
    return path


def test_what_nothing_in_the_file_says_is_known_after_loading(demo_file, tmp_path, caplog):
    caplog.set_level("INFO", "naiad")
    file = save_without_markers(demo_file, tmp_path / "merged_model_final.safetensors")
    before = detect_model(single_model_catalog(file))
    assert before.detection.is_assumed
    after = load_runner(before, Settings(device="cpu")).model
    assert (after.detection.prediction, after.detection.zsnr, after.profile.name) == ("v", True, "sdxl-v")
    (line,) = [record.message for record in caplog.records if "prediction" in record.message]
    assert line.startswith(
        "merged_model_final.safetensors: velocity prediction, zero terminal SNR: its network's"
    )
    assert str(after.card()["evidence"]).count("velocity prediction") == 1


@pytest.mark.parametrize(
    ("parameters", "ladder"),
    [
        ({}, [80 * (0.01 / 80) ** (k / 4) for k in range(5)]),
        ({"noise_schedule": "native"}, [80 * (0.01 / 80) ** (k / 4) for k in range(5)]),
        ({"noise_schedule": "karras", "sampler": "k_dpmpp_2m"}, karras(5, 80, 0.01)),
    ],
)
def test_a_cosxl_file_is_drawn_over_the_sigmas_that_it_names(demo_file, tmp_path, parameters, ladder):
    markers = {"edm_vpred.sigma_max": torch.tensor(80.0), "edm_vpred.sigma_min": torch.tensor(0.01)}
    model = detect_model(
        single_model_catalog(save_without_markers(demo_file, tmp_path / "mine.safetensors", markers))
    )
    assert (model.profile.name, model.detection.sigma_range) == ("cosxl", (pytest.approx(0.01), 80.0))
    body = {"input": "cat", "parameters": {"width": 64, "height": 96, "steps": 5, "seed": 1} | parameters}
    policy = RequestPolicy(model, load_presets(configs() / "presets.toml"))
    result = run_job(load_runner(model, Settings(device="cpu")), resolve(read_request(body), policy).job)
    assert result.sigmas == pytest.approx((*ladder, 0.0), rel=1e-6)
    assert result.images[0].shape == (96, 64, 3)


def test_a_configured_prediction_is_not_probed(demo_file, tmp_path):
    file = save_without_markers(demo_file, tmp_path / "merged.safetensors")
    catalog = Catalog(default="m", models={"m": ModelEntry(path=file, prediction="eps")})
    runner = load_runner(detect_model(catalog), Settings(device="cpu"))
    assert (runner.model.detection.prediction, runner.model.profile.name) == ("eps", "sdxl-eps")
