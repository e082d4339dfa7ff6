"""The adversary's weight and warm-up on spirals: accuracy and the probes' share, by seed or fold."""

import argparse

from pyro_armed.adversary import Adversary
from pyro_armed.baselines import BASELINES, fits, score
from pyro_armed.reproduce import find
from pyro_armed.reproduce._spirals import network

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--application", default="spirals-confounded")
    parser.add_argument("--units", type=int, default=4)
    parser.add_argument("--settings", nargs="+", default=["0.5,0", "0.5,0.5", "0.5,1", "0.1,0", "0.1,0.5"])
    options = parser.parse_args()
    application = find(options.application)
    inputs = application.problem(0, True, ()).task.train.x.shape[1]
    net = network(inputs, options.units)
    variants = [BASELINES["random effects"].changed("no adversary", "", network=net)]
    for text in options.settings:
        weight, warmup = map(float, text.split(","))
        adversary = Adversary(weight=weight, warmup=warmup)
        name = f"weight {weight:g}, warm-up {warmup:g}"
        variants.append(BASELINES["ARMED"].changed(name, "", adversary=adversary, network=net))
    for seed in options.seeds:
        problem = application.problem(seed, False, ())
        for name, fitted in fits(problem.task, baselines=variants, seed=seed, progressbar=False):
            found = score(problem.task, fitted).set_index(["split", "metric"])["value"]
            further = application.measures(problem, name, fitted, seed)
            share = "" if further is None else f", probes {further['value'].item():.3f}"
            print(
                f"seed {seed}, {options.units} units, {name}: accuracy {found['seen', 'accuracy']:.3f} seen, "
                f"{found['unseen', 'accuracy']:.3f} unseen{share}",
                flush=True,
            )
