from pathlib import Path

import pytest
from checkpoint_files import SDXL, hollow

from pipelines.errors import WeightsError
from pipelines.weights.detect import detect
from pipelines.weights.model_name import find_name, interpret_name

FLOW = """NoobRF noobaiRF_v01 NoobRFv3 mugenRF_v1 noobrf ILLUSTRIOUSRF sdxlrf noobairf RFMix noobai-rf-v3 nyaflow-xl-alpha
animeflow_v2 InstaFlow perflow-sdxl XL_Flow_alpha FlowMatching sdxlFlowMatching_v1 flow_pred nai-v2-fm-alpha bigaspv25
ChenkinNoob-XL-v0.3-Rectified-Flow noob-vpred-rf"""
NOTHING = """flower-garden overflow_mix airflowXL AirFlowXL over_flow surfMix workflow waterflow perfection dwarf-mix surf nerf
fluffyRealistic scarf turfXL kerf dusseldorf fmriNet rfkill pearlFlower mayflower tacosXL playground-v2-1024px projectX0.5
1024x0 improv_predator modelEpsilon x-vpred-to-eps vpred2epsilon"""


@pytest.mark.parametrize("name", FLOW.split())
def test_a_name_that_speaks_of_flow_is_a_rectified_flow_models(name):
    claim = interpret_name(f"{name}.safetensors", "")
    assert claim is not None
    assert claim.unsupported == "a rectified-flow model"


@pytest.mark.parametrize("name", NOTHING.split())
def test_a_similar_word_or_two_predictions_indicate_nothing(name):
    assert interpret_name(f"{name}.safetensors", "") is None


@pytest.mark.parametrize(
    ("name", "prediction", "zsnr"),
    [
        ("noobaiXLNAIXL_vPred10Version", "v", None),
        ("V-Prediction_mix", "v", None),
        ("fluffyrock-terminal-snr-vpred-e4", "v", True),
        ("model-v-zsnr", "v", True),
        ("model-ztsnr", "v", True),
        ("NoobAI-XL-eps-v1.1", "eps", None),
        ("mix_epsPred", "eps", None),
        ("cosxl", "edm_v", None),
        ("myCosXL_v1", "edm_v", None),
        ("cos-xl-fp16", "edm_v", None),
        ("sdxl-edm_vpred", "edm_v", None),
    ],
)
def test_a_name_can_indicate_a_prediction(name, prediction, zsnr):
    claim = interpret_name(f"{name}.safetensors", "")
    assert claim is not None
    assert (claim.prediction, claim.zsnr) == (prediction, zsnr)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sdxl_lightning_1step_x0", "predicts x0"),
        ("lightningX0", "predicts x0"),
        ("x0pred_test", "predicts x0"),
        ("playground-v2.5-1024px-aesthetic", "Playground"),
        ("playgroundv25", "Playground"),
        ("edm-test", "EDM"),
        ("u-pred", "unknown prediction"),
        ("scorepred", "unknown prediction"),
        ("score_prediction_v1", "unknown prediction"),
    ],
)
def test_a_name_of_another_prediction_is_refused_with_the_setting_that_overrides_it(tmp_path, name, reason):
    path = hollow(tmp_path / f"{name}.safetensors", SDXL)
    with pytest.raises(WeightsError, match=f"{reason}.*only the file's name.*`prediction`.*--prediction"):
        detect(path)
    assert detect(path, "eps").prediction == "eps"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/a.safetensors", "a.safetensors"),
        ("nyaflow/unet/diffusion_pytorch_model.fp16.safetensors", "nyaflow"),
        ("nyaflow/unet", "nyaflow"),
        ("flow/model.safetensors", "model.safetensors"),
        ("models--a--noobai-Vpred/snapshots/" + "0f" * 20, "models--a--noobai-Vpred"),
    ],
)
def test_a_component_and_a_snapshot_have_the_name_of_a_folder_above(path, name):
    assert find_name(Path("/srv") / path) == name


def test_a_title_in_the_metadata_is_a_name_too(tmp_path):
    path = hollow(tmp_path / "a.safetensors", SDXL, {"modelspec.title": "mugenRF"})
    with pytest.raises(WeightsError, match=r"rectified-flow.*modelspec\.title, 'mugenRF'"):
        detect(path)
