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
