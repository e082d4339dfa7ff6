"""Simulation-based calibration of a random-intercept model, 12 groups of 8 rows."""

import argparse
import warnings

import pyro.distributions as dist

import pyro_armed as pa

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=("gaussian", "bernoulli"))
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    frame = pa.simulate.mixed_model(12, 8, family=options.family, seed=0).frame
    priors = {
        "Intercept": dist.Normal(0.0, 1.0),
        "x1": dist.Normal(0.0, 1.0),
        "1|group_sigma": dist.HalfNormal(1.0),
    }
    model = pa.ARMED("y ~ x1 + (1 | group)", frame, family=options.family, priors=priors)
    result = pa.diagnostics.sbc(model, options.simulations, seed=options.seed)
    print(result)
    print(result.test().to_string())
    curves = result.ecdf()
    print("outside the 95 % band:", *curves[~curves["inside"]]["parameter"].unique())
