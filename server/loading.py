"""The one module of the server that reaches the torch half of pipelines; imported on the device thread, late."""

from pipelines.pipeline import Pipeline
from pipelines.weights import load
from server.served import Served
from server.settings import Settings


def load_pipeline(served: Served, settings: Settings) -> Pipeline:
    """Load what is served onto the settings' device.

    Raises:
        WeightsError: the file cannot serve.
    """
    entry = served.entry
    weights = load(
        entry.path,
        device=settings.device,
        dtype=entry.dtype or settings.dtype,
        prediction=served.identity.prediction,
        zsnr=served.identity.zsnr,
        vae=entry.vae,
        text_encoders=entry.text_encoders,
        attention=settings.attention,
    )
    return Pipeline(weights, sigma_max=served.profile.sigma_max, batching=settings.engine.batching)
