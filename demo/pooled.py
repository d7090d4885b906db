"""Trains the layers that only the pooled vector depends on, the last ones of the second text encoder.

A UNet that reads the context does not use an uninformative pooled vector, and layers without use get no gradients. So
they learn to predict a caption's tags before the UNet is trained on captions without their context.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import trange

from demo.captions import random_scene, write_caption
from demo.text_encoders import TextEncoders, split_captions

CAPTIONS, BATCH_SIZE, STEPS, LEARNING_RATE = 8000, 64, 3000, 2e-3


def train_pooled(encoders: TextEncoders, steps: int = STEPS, captions: int = CAPTIONS) -> float:
    """Train the last layer, its norm and the projection in place; all other layers stay as they are.

    Returns:
        The mean loss of the last hundred steps; about 0.7 without training.
    """
    rng = np.random.default_rng(7)
    texts = [write_caption(random_scene(rng), rng, tag_rate=1.0) for _ in range(captions)]
    chunks, targets = split_captions(texts, max_chunks=1), label_captions(texts)
    head = nn.Linear(encoders(chunks[:1])[1].shape[1], targets.shape[1])
    layers = nn.ModuleList([encoders.requires_grad_(False).pooled_layers().requires_grad_(True), head])
    optimizer = torch.optim.AdamW(layers.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mean_loss = 0.0
    for step in trange(steps, desc="pooled", mininterval=10):
        chosen = rng.integers(captions, size=BATCH_SIZE)
        logits = head(encoders([chunks[k] for k in chosen])[1])
        loss = binary_cross_entropy_with_logits(logits, targets[torch.from_numpy(chosen)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        mean_loss += (float(loss.detach()) - mean_loss) / min(step + 1, 100)
    return mean_loss


def label_captions(texts: list[str]) -> Tensor:
    """Return which of all tags each caption has, 0 or 1 (B, tags)."""
    tags = sorted({tag for text in texts for tag in text.split(", ")})
    return torch.tensor([[tag in text.split(", ") for tag in tags] for text in texts], dtype=torch.float32)
