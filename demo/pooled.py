"""The vector that sums a caption up, from the last layer of the second text encoder, which does nothing else.

A UNet that reads captions word by word has no use for a vector that says nothing yet, and a layer that is not used is
not corrected. So it learns to tell a caption's tags before the UNet is given captions without their words.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import trange

from demo.captions import random_scene, write_caption
from demo.text_encoders import TextEncoders, split_captions

CAPTIONS, BATCH, STEPS, RATE = 8000, 64, 3000, 2e-3


def train_pooled(language: TextEncoders, steps: int = STEPS, captions: int = CAPTIONS) -> float:
    """Train the layer, its norm and the projection in place; nothing below them changes.

    Returns:
        the mean loss of the last hundred steps, about 0.7 where nothing is known.
    """
    rng = np.random.default_rng(7)
    texts = [write_caption(random_scene(rng), rng, tag_rate=1.0) for _ in range(captions)]
    read, right = split_captions(texts, max_chunks=1), label_captions(texts)
    head = nn.Linear(language(read[:1])[1].shape[1], right.shape[1])
    learning = nn.ModuleList([language.requires_grad_(False).pooled_layers().requires_grad_(True), head])
    optimizer = torch.optim.AdamW(learning.parameters(), lr=RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    running = 0.0
    for step in trange(steps, desc="summary", mininterval=10):
        chosen = rng.integers(captions, size=BATCH)
        said = head(language([read[k] for k in chosen])[1])
        loss = binary_cross_entropy_with_logits(said, right[torch.from_numpy(chosen)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        running += (float(loss.detach()) - running) / min(step + 1, 100)
    return running


def label_captions(texts: list[str]) -> Tensor:
    """Which of all their tags captions have, 0 or 1 (B, tags)."""
    tags = sorted({tag for text in texts for tag in text.split(", ")})
    return torch.tensor([[tag in text.split(", ") for tag in tags] for text in texts], dtype=torch.float32)
