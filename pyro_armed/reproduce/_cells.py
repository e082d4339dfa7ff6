"""Cells in batches, by an autoencoder with a classifier on its latent values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from pyro_armed.adversary import Adversary
from pyro_armed.effects import RandomEffects, ScaleBias
from pyro_armed.networks import AutoencoderClassifier
from pyro_armed.reproduce._application import Application, Problem
from pyro_armed.reproduce._diagnosis import (
    NEW_GROUPS,
    SHOWN,
    binary,
    folder_images,
    largest_groups,
)
from pyro_armed.reproduce._site_tasks import site_task
from pyro_armed.reproduce._sites import SiteTruth, measures, pictures, split
from pyro_armed.simulate import cells, group_logits
from pyro_armed.spec import Reconstruction

__all__ = ["CELLS"]

_FIT = {"epochs": 32, "batch_size": 64, "learning_rate": 6e-3, "schedule": "cosine"}
_BATCHES = 10
_CHANNELS = (8, 16)
# The kernel does most: without it a fresh probe got .38 of batches where the classifier saw .24 (seed 100).
_ADVERSARY = Adversary(weight=1.0, hidden=(16,), warmup=0.5, learning_rate=0.01, independence=100.0)
# A pixel of an image counts less than a label, of which there is one. To draw an image's batch the latent
# values have to know it; the more it weighs, the harder it is to hide.
_RECONSTRUCTION = Reconstruction("normal", weight=0.006)
# Without it nothing but a prior says that the network predicts alone; much of it asks for the batch's rate.
_FIXED_EFFECTS = 0.3


def _network() -> nn.Module:
    return AutoencoderClassifier(channels=_CHANNELS, latent=8, activation="elu")


def _problem(seed: int, quick: bool, files: Sequence[Path]) -> Problem:
    if files:
        data = folder_images(files, quick)
        seen = largest_groups(data.groups, _BATCHES)
        images, labels, groups = data.images, binary(data.labels), data.groups
        effects, mask = {}, None
        words = f"{len(images)} images of {len(set(groups.tolist()))} batches from {files[-1]}."
    else:
        made = cells(4 if quick else _BATCHES, 24 if quick else 120, unseen=2 if quick else 5, seed=seed)
        images, labels, groups, seen, mask = made.images, made.labels, made.groups, made.seen, made.mask
        kept = made.effects[made.effects["seen"]]
        effects = {"logit": group_logits(kept), "gain": kept["gain"], "offset": kept["offset"]}
        words = (
            f"Cells of two classes, round and elongated, in {len(kept)} batches, and in "
            f"{len(made.effects) - len(kept)} further ones (unseen); illumination, contrast and blur differ, "
            "and contrast goes with the batches' rates in training."
        )
    train, test = split(seed, groups, seen)

    last = AutoencoderClassifier(channels=_CHANNELS).last_conv
    first = AutoencoderClassifier(channels=_CHANNELS).conv_layers[0]
    task = site_task(
        images,
        labels,
        "batch",
        groups,
        (train, test),
        quick=quick,
        fit=_FIT,
        network=_network,
        random_effects=[
            RandomEffects("batch"),
            ScaleBias(layers=[first], group="batch"),
            ScaleBias(layers=[last], group="batch", normalize=False),
        ],
        adversary=_ADVERSARY,
        reconstruction=_RECONSTRUCTION,
        new_groups=NEW_GROUPS,
        fixed_effects_weight=_FIXED_EFFECTS,
        draws=5 if quick else 20,
    )
    within = {"gain": f"scale[{last}]|batch", "offset": f"bias[{last}]|batch"}
    truth = SiteTruth(effects, None if mask is None else mask[test], within)
    return Problem(task, truth=truth, words=words, simulated=not files)


CELLS = Application(
    name="cells",
    title="Cells in 10 batches, an autoencoder with a classifier",
    problem=_problem,
    measures=measures,
    pictures=pictures,
    shown=(
        *SHOWN,
        ("effects", "r(gain)"),
        ("effects", "r(offset)"),
        ("features", "Davies-Bouldin"),
        ("features", "Calinski-Harabasz"),
    ),
    note=(
        "Leakage: accuracy of a fresh probe of the batch given the label, and the limit of chance (97.5 %). "
        "Effects: r with the true log odds, and of pictures as if from each batch with its true contrast and "
        "brightness; how far the intercepts moved from the prior, in its sds. Saliency: share of HiResCAM in "
        "the cell."
    ),
    reads="a CSV file with columns image, label, site, and the images' folder if it is another",
)
