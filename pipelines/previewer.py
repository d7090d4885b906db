"""Previews of images while they are generated, for at most a fixed share of the time.

What the device must do for one is to decode a small image and to start its copy to the CPU. A worker thread waits for
the copy, encodes it and passes it on, so that no evaluation waits. What that costs is measured, and estimates are left
out until the time since the start of the run allows another preview.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import BytesIO
from time import perf_counter, thread_time

import torch
from PIL import Image
from torch import Tensor

from pipelines.device import copies_in_background
from pipelines.image.preview import DecodePreview
from pipelines.types import OnPreview, Preview

log = logging.getLogger("naiad")
SHARE = 0.03
"""Largest share of a run's time that its previews take."""
LATENT_SIDE = 4
"""Pixels of a preview's side for a latent: half the image's eight."""
QUALITY = 80
"""JPEG quality: NAI's own previews are JPEGs too, and below this the smooth areas break into blocks."""
MEASURED_SIDE = 32
"""Latents along each side of the estimate that is previewed to measure the cost before the first run."""


class Previewer:
    """Makes previews of one model's images, on the device thread.

    Args:
        decode: turns latents on `device` into a small image there.

    Attributes:
        seconds_per_latent: what the last preview cost.
    """

    def __init__(self, decode: DecodePreview, device: torch.device) -> None:
        self._decode, self._device = decode, device
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self.seconds_per_latent = 0.0
        for _ in range(2):  # the first call loads code and starts threads
            self.settle(
                self.start(torch.zeros(4, MEASURED_SIDE, MEASURED_SIDE, device=device)), MEASURED_SIDE**2
            )

    @torch.inference_mode()
    def start(self, estimate: Tensor, deliver: Callable[[bytes], None] | None = None) -> "Future[float]":
        """Begin a preview of an estimate (4, h, w); the future is its cost in seconds.

        Args:
            deliver: called with the JPEG on the worker thread.
        """
        height, width = estimate.shape[-2:]
        timer = DeviceTimer(self._device)
        copy = self._decode(estimate).to("cpu", non_blocking=copies_in_background(self._device))
        timer.stop()
        size = LATENT_SIDE * width, LATENT_SIDE * height
        return self._worker.submit(self._finish, copy, timer, size, deliver)

    def settle(self, preview: "Future[float]", latents: int) -> float:
        """Return the cost of a preview of an estimate of `latents` latents; waits for the preview's end."""
        seconds = preview.result()
        self.seconds_per_latent = seconds / latents
        return seconds

    def _finish(
        self,
        copy: Tensor,
        timer: "DeviceTimer",
        size: tuple[int, int],
        deliver: Callable[[bytes], None] | None,
    ) -> float:
        """Encode a decoded preview once it has been copied, and return what it cost."""
        seconds = timer.wait()
        started = thread_time()
        jpeg = encode_jpeg(Image.fromarray(copy.numpy()), size)
        if deliver is not None:
            deliver(jpeg)
        # next to a GPU, a thread of the CPU costs the run nothing
        return seconds + (thread_time() - started if self._device.type == "cpu" else 0.0)


class DeviceTimer:
    """Measures work on a device; the thread that starts the work does not wait for it."""

    def __init__(self, device: torch.device) -> None:
        if device.type == "mps":
            torch.mps.synchronize()  # else the copy would wait for the evaluation, whose time would be counted
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._events = (
            [torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2)] if self._stream else []
        )
        self._record(0)
        self._started = perf_counter()
        self._seconds = 0.0

    def stop(self) -> None:
        """End the measurement after the work that has been started so far."""
        self._seconds = perf_counter() - self._started
        self._record(1)

    def wait(self) -> float:
        """Return the seconds the work took, once it is done."""
        if not self._events:
            return self._seconds
        start, end = self._events
        end.synchronize()
        return max(self._seconds, start.elapsed_time(end) / 1000)

    def _record(self, index: int) -> None:
        if self._stream is not None:
            self._events[index].record(self._stream)


class PreviewRun:
    """The previews of one job; each of its images has an equal part of the time they may take.

    Args:
        images: how many the job has.
    """

    def __init__(self, previewer: Previewer, images: int, on_preview: OnPreview) -> None:
        self._previewer, self._on_preview = previewer, on_preview
        self._share = SHARE / images
        self._started = perf_counter()
        self._spent, self._last_steps = [0.0] * images, [0] * images
        self._pending: dict[int, tuple[Future[float], int]] = {}
        self._has_failed = False

    def show(self, image: int, estimate: Tensor, sigma: float, step: int) -> None:
        """Begin a preview of an estimate (4, h, w), unless its step has one or there is no time for it."""
        latents = estimate[0].numel()
        if self._has_failed or step <= self._last_steps[image] or not self._has_time(image, latents):
            return
        deliver = partial(self._deliver, image, step, sigma)
        try:
            self._pending[image] = self._previewer.start(estimate, deliver), latents
        except (
            RuntimeError
        ) as error:  # no memory; a device that has failed for good fails the next evaluation too
            self._give_up(error)
            return
        self._last_steps[image] = step

    def _has_time(self, image: int, latents: int) -> bool:
        """Return whether an image's last preview is done and the time since the start allows another."""
        if image in self._pending:
            preview, size = self._pending[image]
            if not preview.done():
                return False
            del self._pending[image]
            if (error := preview.exception()) is not None:
                self._give_up(error)
                return False
            self._spent[image] += self._previewer.settle(preview, size)
        cost = self._previewer.seconds_per_latent * latents
        return self._spent[image] + cost <= self._share * (perf_counter() - self._started)

    def _deliver(self, image: int, step: int, sigma: float, jpeg: bytes) -> None:
        self._on_preview(Preview(image, step, sigma, jpeg))

    def _give_up(self, error: BaseException) -> None:
        """Make no more previews of this job: an image must not fail with them."""
        self._has_failed = True
        log.warning("no more previews of this request: %s", error)


def encode_jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    """Return an image as JPEG, resized smoothly."""
    file = BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
