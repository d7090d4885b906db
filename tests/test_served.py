import pytest

from demo.checkpoint import build_demo
from pipelines.errors import WeightsError
from server.catalog import Catalog, Entry, single
from server.served import recognise
from server.toml import ConfigError


def listed(file, profile):
    return Catalog(default="a", models={"a": Entry(path=file, profile=profile)})


def test_a_model_is_known_by_its_file_and_gets_its_profile(demo_file):
    served = recognise(single(demo_file))
    assert (served.profile.name, served.identity.prediction, served.identity.zsnr) == ("demo", "v", True)
    assert served.card()["hash"] == served.fingerprint
    assert str(demo_file.parent) not in str(served.card())


def test_the_catalogue_may_name_the_profile(demo_file):
    assert recognise(listed(demo_file, "noobai-vpred")).profile.name == "noobai-vpred"
    with pytest.raises(ConfigError, match="noobai-vpred"):
        recognise(listed(demo_file, "nobody"))


def test_an_inpainting_model_is_not_served_for_drawing_from_text(tmp_path):
    with pytest.raises(WeightsError, match="inpainting model"):
        recognise(single(build_demo(tmp_path / "naiad-demo-inpainting.safetensors", channels=9)))


def test_a_second_unet_for_inpainting_is_named_in_the_card(demo_file, tmp_path):
    nine = build_demo(tmp_path / "nine.safetensors", channels=9)
    catalog = Catalog(default="m", models={"m": Entry(path=demo_file, inpainting=nine)})
    assert recognise(catalog).card()["inpainting"] == "network"
    assert recognise(single(demo_file)).card()["inpainting"] == "blend"


def test_a_second_unet_must_be_one_for_inpainting(demo_file):
    catalog = Catalog(default="m", models={"m": Entry(path=demo_file, inpainting=demo_file)})
    with pytest.raises(WeightsError, match="its UNet has 4 input channels; one for inpainting has 9"):
        recognise(catalog)
