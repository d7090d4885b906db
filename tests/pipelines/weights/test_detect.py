import subprocess
import sys

import pytest
from checkpoint_files import MARKERS, SDXL, hollow

from pipelines.errors import WeightsError
from pipelines.weights.detect import detect


@pytest.mark.parametrize("name", ["flower-garden", "overflow_mix", "airflowXL", "surfMix"])
def test_flow_within_a_longer_word_is_no_rectified_flow(tmp_path, name):
    assert detect(hollow(tmp_path / f"{name}.safetensors", SDXL)).prediction == "eps"


def test_a_link_is_detected_by_its_own_name(tmp_path):
    blob = hollow(tmp_path / "6327eca9", SDXL)
    link = tmp_path / "model-vpred.safetensors"
    link.symlink_to(blob)
    assert detect(link).prediction == "v"


def test_markers_come_before_metadata_and_metadata_before_the_name(tmp_path):
    metadata = {"modelspec.prediction_type": "epsilon"}
    assert detect(hollow(tmp_path / "vpred.safetensors", SDXL | MARKERS, metadata)).prediction == "v"
    assert detect(hollow(tmp_path / "vpred.safetensors", SDXL, metadata)).prediction == "eps"


def test_detection_needs_no_torch():
    code = "import sys, pipelines.weights.detect, pipelines.weights.key_map; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("key", ["lycoris_blocks_0.hada_w1_a", "lycoris_blocks_0.lokr_w2"])
def test_every_kind_of_lora_is_refused_as_one(tmp_path, key):
    with pytest.raises(WeightsError, match="a LoRA"):
        detect(hollow(tmp_path / "a.safetensors", {key: (4, 320)}))
