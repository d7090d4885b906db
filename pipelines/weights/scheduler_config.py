"""What `scheduler_config.json` of a diffusers folder says about the prediction and the noise schedule.

Defaults are diffusers' own. `epsilon` alone is no evidence: folders of v-prediction models have it too, copied unread.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.weights.claim import EDM, PLAYGROUND, RECTIFIED_FLOW, UNKNOWN, Claim, interpret, parse_flag
from pipelines.weights.config_file import is_near

Config = Mapping[str, object]

CLASS_NAMES = (
    "DDIM DDIMInverse DDIMParallel DDPM DDPMParallel DEISMultistep DPMSolverMultistep DPMSolverMultistepInverse "
    "DPMSolverSDE DPMSolverSinglestep EulerAncestralDiscrete EulerDiscrete HeunDiscrete KDPM2AncestralDiscrete "
    "KDPM2Discrete LCM LMSDiscrete PNDM SASolver TCD UniPCMultistep"
)
KNOWN_CLASSES = frozenset(CLASS_NAMES.split())
"""diffusers' schedulers for networks with Stable Diffusion's noise table, without `Flax` and `Scheduler`."""
EDM_CLASSES = {"EDMEuler", "EDMDPMSolverMultistep"}
EDM_DEFAULTS: Config = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "prediction_type": "epsilon",
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


def read_scheduler(config: Config) -> Iterator[Claim]:
    """Yield the claims of a scheduler's config."""
    name = _class_name(config)
    if name in EDM_CLASSES:
        yield _read_edm(name, config)
        return
    source = f"its scheduler's class is {str(config.get('_class_name'))[:80]!r}"
    if "Flow" in name or config.get("use_flow_sigmas") is True:
        yield Claim(
            source if "Flow" in name else "its scheduler uses flow sigmas", unsupported=RECTIFIED_FLOW
        )
    elif name and name not in KNOWN_CLASSES:
        yield Claim(source, unsupported=UNKNOWN)
    yield from _read_prediction(config)


def _read_prediction(config: Config) -> Iterator[Claim]:
    value = config.get("prediction_type")
    claim = interpret(
        "epsilon" if value is None else value, f"its scheduler's prediction_type is {str(value)[:80]!r}"
    )
    rescaled = config.get("rescale_betas_zero_snr")
    zsnr = False if rescaled is None else parse_flag(rescaled)
    zsnr_source = f"its scheduler's rescale_betas_zero_snr is {str(rescaled)[:80]!r}"
    if zsnr is None:
        yield Claim(zsnr_source, unsupported=UNKNOWN)
    if claim is None or claim.prediction != "eps":
        yield from () if claim is None else (_read_continuous(config, claim),)
        yield Claim(zsnr_source, zsnr=zsnr)
    elif zsnr:
        yield claim
        yield Claim(zsnr_source, zsnr=True)


def _read_continuous(config: Config, claim: Claim) -> Claim:
    """diffusers' Euler with continuous time and velocity is EDM's: the time is 0.25 ln sigma."""
    if claim.prediction == "v" and config.get("timestep_type") == "continuous":
        return Claim(f"{claim.source}, its timestep_type 'continuous'", "edm_v")
    return claim


def _read_edm(name: str, config: Config) -> Claim:
    stated = {**EDM_DEFAULTS} | {key: value for key, value in config.items() if value is not None}
    claim, sigma_data = interpret(stated["prediction_type"], ""), stated["sigma_data"]
    source = f"its scheduler is {name} with {str(stated['prediction_type'])[:80]} and sigma_data {str(sigma_data)[:80]}"
    kind = None if claim is None else claim.prediction
    if (kind, sigma_data) == ("v", 1):
        return Claim(source, "edm_v")
    return Claim(source, unsupported=PLAYGROUND if (kind, sigma_data) == ("eps", 0.5) else EDM)


def read_sigma(config: Config, key: str, default: float) -> object:
    """Return a field of a scheduler's config; one that is absent has diffusers' default if the scheduler is EDM's."""
    value = config.get(key)
    if value is None:
        return EDM_DEFAULTS[key] if _class_name(config) in EDM_CLASSES else default
    return value


def check_betas(path: Path, config: Config) -> None:
    """Raise WeightsError if a scheduler's noise table is not Stable Diffusion's; absent fields do not count."""
    stated = {key: value for key, value in config.items() if value is not None}
    wrong = [] if stated.get("beta_schedule", "scaled_linear") == "scaled_linear" else ["beta_schedule"]
    wrong += [key for key, value in BETAS.items() if not is_near(stated.get(key, value), value)]
    wrong += ["trained_betas"] if "trained_betas" in stated else []
    if wrong:
        reason = f"its scheduler's {wrong[0]} is {str(config[wrong[0]])[:80]}, which is not supported"
        allowed = "its betas must be scaled_linear, from 0.00085 to 0.012 in 1000 steps"
        raise WeightsError(path, f"{reason}: {allowed}; correct scheduler_config.json if it is wrong")


def _class_name(config: Config) -> str:
    return str(config.get("_class_name") or "").removeprefix("Flax").removesuffix("Scheduler")
