"""What a checkpoint indicates about its prediction and terminal SNR, from the strongest source to the weakest.

The order is: a YAML file next to the checkpoint, markers, metadata, the scheduler's config, names. Users write the YAML
file themselves. Markers are empty tensors (ComfyUI, SimpleTuner and OneTrainer write them); only the key counts.
"""

from collections.abc import Callable, Iterator

from pipelines.weights.checkpoint import Checkpoint
from pipelines.weights.claim import Claim, agree, refuse
from pipelines.weights.model_name import read_name
from pipelines.weights.scheduler_config import read_scheduler
from pipelines.weights.sidecar import find_sidecar
from pipelines.weights.trainer_metadata import read_metadata

EDM_MARKERS = ("edm_vpred.sigma_max", "edm_vpred.sigma_min")


def find_prediction(checkpoint: Checkpoint) -> Claim | None:
    """Return the claim of the strongest source that makes one, None if none does.

    Raise WeightsError if it is of a model that cannot run, or if a source contradicts itself. A name that speaks of
    such a model counts even against `eps`, which trainers write unasked.
    """
    found = next((claim for read in SOURCES if (claim := agree(checkpoint.path, read(checkpoint)))), None)
    named = read_name(checkpoint)
    if named is not None and (found is None or (found.prediction == "eps" and named.unsupported)):
        found = named
    if found is not None and found.unsupported is not None:
        raise refuse(checkpoint.path, found)
    return found


def find_zsnr(checkpoint: Checkpoint) -> Claim | None:
    """Return the strongest claim about the terminal SNR of a model with velocity prediction, None without any."""
    claims = [claim for read in SOURCES for claim in read(checkpoint)]
    named = read_name(checkpoint)
    claims += [] if named is None else [named]
    return next((claim for claim in claims if claim.zsnr is not None), None)


def _read_sidecar(checkpoint: Checkpoint) -> Iterator[Claim]:
    sidecar = find_sidecar(checkpoint.path)
    if sidecar is not None:
        yield from sidecar.read_claims()


def _read_markers(checkpoint: Checkpoint) -> Iterator[Claim]:
    has_v, has_zsnr = "v_pred" in checkpoint.tensors, "ztsnr" in checkpoint.tensors
    edm = next((key for key in EDM_MARKERS if key in checkpoint.tensors), None)
    if edm is not None:
        yield Claim(f"the tensor {edm} is present", "edm_v")
    elif has_v:
        rest = "and ztsnr are present" if has_zsnr else "is present, ztsnr is not"
        yield Claim(f"the tensor{'s' if has_zsnr else ''} v_pred {rest}", "v", has_zsnr)
    elif has_zsnr:
        yield Claim("its prediction is missing", unsupported="the marker ztsnr without v_pred")


def _read_metadata(checkpoint: Checkpoint) -> Iterator[Claim]:
    return read_metadata(checkpoint.metadata)


def _read_scheduler(checkpoint: Checkpoint) -> Iterator[Claim]:
    return read_scheduler(checkpoint.scheduler)


SOURCES: tuple[Callable[[Checkpoint], Iterator[Claim]], ...] = (
    _read_sidecar,
    _read_markers,
    _read_metadata,
    _read_scheduler,
)
