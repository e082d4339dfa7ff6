"""Processor time of fitting a CNN to 5000 images of 64 x 64 in 12 sites, over that of plain torch.

Plain torch: the same network, batches, Adam and epochs, with the cross-entropy alone.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import torch

import pyro_armed as pa

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--guide", default="mean_field")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--only", default="", help="configurations whose names contain this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((options.rows, options.size, options.size)).astype(np.float32)
    y, site = rng.integers(2, size=options.rows), rng.integers(12, size=options.rows)

    def network():
        return pa.networks.CNN(channels=(8, 16), hidden=(32, 16))

    def plain():
        net = network().build((options.size, options.size), 1)
        adam = torch.optim.Adam(net.parameters(), lr=1e-3)
        images, labels = torch.from_numpy(x), torch.from_numpy(y).float()
        generator = torch.Generator().manual_seed(0)
        started = time.process_time()
        for _ in range(options.epochs):
            for rows in torch.randperm(len(labels), generator=generator).split(options.batch):
                adam.zero_grad(set_to_none=True)
                out = net(images[rows])[:, 0]
                torch.nn.functional.binary_cross_entropy_with_logits(out, labels[rows]).backward()
                adam.step()
        return time.process_time() - started

    slopes = pa.RandomEffects("site", slopes="features")
    blocks = network().block_layers
    first = pa.effects.ScaleBias([network().conv_layers[0]], "site")
    all_ = pa.effects.ScaleBias(network().conv_layers, "site")
    configurations = {
        "group slopes": ([slopes], None),
        "and the adversary on features": ([slopes], pa.Adversary(0.5)),
        "and the adversary on the blocks": ([slopes], pa.Adversary(0.5, layers=blocks)),
        "and ScaleBias on the first block": ([slopes, first], None),
        "and ScaleBias, adversary on features": ([slopes, first], pa.Adversary(0.5)),
        "and ScaleBias on all blocks, adversary on them": ([slopes, all_], pa.Adversary(0.5, layers=blocks)),
    }

    def ours(effects, adversary):
        model = pa.ARMED.from_arrays(
            x,
            y,
            {"site": site},
            family="bernoulli",
            network=network(),
            random_effects=effects,
            adversary=adversary,
        )
        started = time.process_time()
        model.fit(
            guide=options.guide,
            restarts=1,
            draws=options.draws,
            epochs=options.epochs,
            batch_size=options.batch,
            early_stopping=False,
            log_likelihood=False,
            progressbar=False,
        )
        return time.process_time() - started

    configurations = {name: how for name, how in configurations.items() if options.only in name}
    ratios = {name: [] for name in configurations}
    for _ in range(options.rounds):
        for name, (effects, adversary) in configurations.items():
            took = ours(effects, adversary)
            ratios[name].append(took / plain())
            print(f"{name}: {ratios[name][-1]:.2f} times plain torch", flush=True)
    for name, found in ratios.items():
        print(f"median {name}: {statistics.median(found):.2f}")
