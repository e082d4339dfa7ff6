"""Saving and loading: equal predictions, nothing lost, and every kind of broken file."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file
from torch import nn

import pyro_armed as pa
from pyro_armed.errors import ArgumentError, ConvergenceWarning, FileFormatError, NotFittedError
from pyro_armed.families import HalfStudentT
from pyro_armed.files import _arviz
from pyro_armed.files._container import read, write
from pyro_armed.files._priors import decode_prior, encode_prior
from pyro_armed.posterior import Posterior
from pyro_armed.sampling import sample_nuts

DATA = pa.simulate.mixed_model(5, 12, seed=0)


def fitted(model: pa.ARMED, **options: Any) -> pa.ARMED:
    """Any fit will do: what is tested is that all of it comes back."""
    options = {"guide": "mean_field", "restarts": 2, "draws": 12, "epochs": 5, "progressbar": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(**options)
    return model


@pytest.fixture(scope="module")
def linear() -> pa.ARMED:
    torch.set_num_threads(1)
    priors = {
        "1|group_sigma": HalfStudentT(torch.tensor(4.0), torch.tensor(2.0)),
        "x1": dist.Normal(0.25, 3.0),
    }
    return fitted(pa.ARMED("y ~ x1 + (1 + x1 | group)", DATA.frame, priors=priors))


@pytest.fixture(scope="module")
def network() -> pa.ARMED:
    torch.set_num_threads(1)
    model = pa.ARMED(
        "y ~ x1 + (1 + features | group)",
        DATA.frame,
        network=pa.networks.MLP(hidden=(4,)),
        adversary=pa.Adversary(weight=0.3, hidden=(4,)),
    )
    return fitted(model)


def groups_of(idata: Any) -> dict[str, xr.Dataset]:
    return _arviz._datasets(idata)


def assert_same_idata(one: Any, other: Any) -> None:
    first, second = groups_of(one), groups_of(other)
    assert type(one) is type(other)
    assert list(first) == list(second)
    assert dict(one.attrs) == dict(other.attrs)
    for name in first:
        xr.testing.assert_identical(first[name], second[name])
        for variable in first[name].variables:
            assert first[name][variable].dtype == second[name][variable].dtype


def assert_same_model(one: pa.ARMED, other: pa.ARMED, data: Any, **options: Any) -> None:
    for kind in ("mean", "response", "linear"):
        options = {"new_groups": "marginal", "kind": kind, "seed": 3} | options | {"kind": kind}
        expected, found = one.predict(data, **options), other.predict(data, **options)
        for name, dataset in groups_of(expected).items():
            xr.testing.assert_equal(dataset, groups_of(found)[name])
    assert_same_idata(one.idata, other.idata)
    assert other.spec == one.spec
    assert other.formula == one.formula
    assert repr(other) == repr(one)
    assert other.adversary == one.adversary
    assert {n: str(p) for n, p in other.priors.items()} == {n: str(p) for n, p in one.priors.items()}


def new_rows() -> Any:
    rows = pa.simulate.mixed_model(6, 3, seed=1).frame
    return rows.drop(columns="y")


def test_a_loaded_model_is_the_saved_one(linear: pa.ARMED, tmp_path: Path) -> None:
    linear.save(tmp_path / "model.armed")
    loaded = pa.load(tmp_path / "model.armed")
    assert_same_model(linear, loaded, new_rows())
    assert isinstance(linear._posterior, Posterior)
    for one, other in zip(linear._posterior.chains, loaded._posterior.chains, strict=True):
        assert torch.equal(one.trace, other.trace)
        for part in ("values", "stats", "quality"):
            before, after = getattr(one, part), getattr(other, part)
            assert list(before) == list(after)
            assert all(torch.equal(torch.as_tensor(before[name]), after[name]) for name in before)
    assert loaded._posterior.attributes == linear._posterior.attributes


def test_scores_are_the_same(linear: pa.ARMED, tmp_path: Path) -> None:
    linear.save(tmp_path / "m")
    expected = linear.evaluate(DATA.frame, seed=1)
    assert pa.load(tmp_path / "m").evaluate(DATA.frame, seed=1).equals(expected)


def test_a_loaded_model_can_be_saved_again(network: pa.ARMED, tmp_path: Path) -> None:
    network.save(tmp_path / "a")
    pa.load(tmp_path / "a").save(tmp_path / "b")
    assert_same_model(network, pa.load(tmp_path / "b"), new_rows())
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])


def test_a_mean_field_guide_comes_along(linear: pa.ARMED, tmp_path: Path) -> None:
    linear.save(tmp_path / "m")
    loaded = pa.load(tmp_path / "m")
    expected = linear.guide.state_dict()
    assert expected.keys() == loaded.guide.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.guide.state_dict().items())


def test_a_loaded_model_has_no_training_rows(linear: pa.ARMED, tmp_path: Path) -> None:
    linear.save(tmp_path / "m")
    loaded = pa.load(tmp_path / "m")
    assert loaded.module.data is None
    with pytest.raises(NotFittedError, match="training rows"):
        loaded.fit(progressbar=False)
    with pytest.raises(NotFittedError, match="pass a Batch"):
        loaded.module()
    values = DATA.frame["x1"].to_numpy()
    for name, tensor in read(tmp_path / "m")[0].items():
        assert tensor.numel() != len(values) or not np.allclose(tensor.double().reshape(-1), values), name


def test_a_loaded_module_is_a_pyro_model(linear: pa.ARMED, tmp_path: Path) -> None:
    linear.save(tmp_path / "m")
    loaded = pa.load(tmp_path / "m")
    batch = linear.module.data
    expected = sample_nuts(linear.module, batch, draws=3, warmup=3, chains=1, progressbar=False)
    found = sample_nuts(loaded.module, batch, draws=3, warmup=3, chains=1, progressbar=False)
    assert torch.equal(expected.chains[0].values["x1"], found.chains[0].values["x1"])


def test_in_another_process(network: pa.ARMED, tmp_path: Path) -> None:
    network.save(tmp_path / "m")
    new_rows().to_csv(tmp_path / "rows.csv", index=False)
    code = (
        "import sys, numpy, pandas, pyro_armed as pa\n"
        "model = pa.load(sys.argv[1] + '/m')\n"
        "rows = pandas.read_csv(sys.argv[1] + '/rows.csv')\n"
        "idata = model.predict(rows, new_groups='marginal', seed=5)\n"
        "numpy.save(sys.argv[1] + '/y.npy', idata['predictions']['y'].values)\n"
    )
    root = Path(pa.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, timeout=300)
    import pandas as pd

    rows = pd.read_csv(tmp_path / "rows.csv")
    expected = network.predict(rows, new_groups="marginal", seed=5)["predictions"]["y"].values
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


# --- networks ----------------------------------------------------------------------------------------------


def images(n: int = 24) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8, 8)), rng.integers(0, 2, n), [f"site {i % 3}" for i in range(n)]


def test_batch_norm_buffers(tmp_path: Path) -> None:
    x, y, sites = images()
    cnn = pa.networks.CNN(channels=(2,), hidden=(3,))
    model = fitted(pa.ARMED.from_arrays(x, y, {"site": sites}, family="bernoulli", network=cnn))
    model.save(tmp_path / "m")
    loaded = pa.load(tmp_path / "m")
    assert any("running_mean" in name for name in loaded.module.state_dict())
    assert_same_model(model, loaded, x[:5] + 0.1, groups={"site": ["site 0"] * 4 + ["new"]})


class Own(nn.Module):
    """A user's network with tied weights, a buffer and a frozen layer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(1, width)
        self.again = self.first
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 1)
        self.register_buffer("seen", torch.tensor(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


def test_a_users_network(tmp_path: Path) -> None:
    model = fitted(pa.ARMED("y ~ x1 + (1 | group)", DATA.frame, network=Own))
    model.save(tmp_path / "m")
    with pytest.raises(ArgumentError, match=r"weights of a Own.*network=Own"):
        pa.load(tmp_path / "m")
    own = Own()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    for source in (own, Own):
        assert_same_model(model, pa.load(tmp_path / "m", network=source), new_rows())
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    with pytest.raises(FileFormatError, match=r"do not fit the network Own.*size mismatch"):
        pa.load(tmp_path / "m", network=Own(5))
    with pytest.raises(FileFormatError, match="do not fit the network Linear"):
        pa.load(tmp_path / "m", network=nn.Linear(1, 1))
    with pytest.raises(ArgumentError, match=r"must be a torch.nn.Module"):
        pa.load(tmp_path / "m", network="MLP")


def test_a_network_where_none_is_wanted(linear: pa.ARMED, network: pa.ARMED, tmp_path: Path) -> None:
    linear.save(tmp_path / "linear")
    network.save(tmp_path / "network")
    with pytest.raises(ArgumentError, match="has no network"):
        pa.load(tmp_path / "linear", network=Own())
    with pytest.raises(ArgumentError, match="describes its own network"):
        pa.load(tmp_path / "network", network=Own())


def test_a_state_that_is_not_tensors(tmp_path: Path) -> None:
    class Odd(Own):
        def get_extra_state(self) -> str:
            return "text"

        def set_extra_state(self, state: Any) -> None:
            pass

    model = fitted(pa.ARMED("y ~ x1 + (1 | group)", DATA.frame, network=Odd))
    with pytest.raises(ArgumentError, match=r"_extra_state.*tensors only"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


# --- families, formulas, labels, inference -----------------------------------------------------------------


class Gumbel(pa.families.Gaussian):
    """A family of the user's own, under a name of the library's."""

    def distribution(self, mu: torch.Tensor, sigma: torch.Tensor) -> Any:  # type: ignore[override]
        return dist.Gumbel(mu, sigma)


def test_a_family_of_ones_own(tmp_path: Path) -> None:
    model = fitted(pa.ARMED("y ~ x1 + (1 | group)", DATA.frame, family=Gumbel()))
    model.save(tmp_path / "m")
    with pytest.raises(ArgumentError, match="pass family="):
        pa.load(tmp_path / "m")
    assert_same_model(model, pa.load(tmp_path / "m", family=Gumbel()), new_rows())
    with pytest.raises(ArgumentError, match="pass the family of that name"):
        pa.load(tmp_path / "m", family=pa.families.StudentT())


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    def cubed(x: Any) -> Any:
        return x**3

    model = fitted(pa.ARMED("y ~ cubed(x1) + (1 | group)", DATA.frame, namespace={"cubed": cubed}))
    model.save(tmp_path / "m")
    with pytest.raises(FileFormatError, match=r"cubed.*namespace"):
        pa.load(tmp_path / "m")
    assert_same_model(model, pa.load(tmp_path / "m", namespace={"cubed": cubed}), new_rows())


@pytest.mark.parametrize(
    "labels", [list(range(10, 15)), ["ü", "b c", "", "d/e", "x" * 50], [1.5, "z", -3, 0, 2]]
)
def test_labels_of_any_kind(labels: list[Any], tmp_path: Path) -> None:
    frame = DATA.frame.copy()
    known = sorted(frame["group"].unique())
    frame["group"] = frame["group"].map(dict(zip(known, labels, strict=True))).astype(object)
    model = fitted(pa.ARMED("y ~ x1 + (1 | group)", frame))
    model.save(tmp_path / "m")
    loaded = pa.load(tmp_path / "m")
    assert [type(x) for x in loaded.spec.group("group").labels] == [
        type(x) for x in model.spec.group("group").labels
    ]
    assert_same_model(model, loaded, frame.drop(columns="y"))


def test_transforms_and_categories(tmp_path: Path) -> None:
    frame = DATA.frame.assign(kind=np.where(DATA.frame["x1"] > 0, "high", "low"))
    formula = ["y ~ bs(x1, df=4) + kind + (1 | group)", "sigma ~ scale(x1)"]
    model = fitted(pa.ARMED(formula, frame))
    model.save(tmp_path / "m")
    assert_same_model(model, pa.load(tmp_path / "m"), frame.drop(columns="y").iloc[::-3])


def test_a_structured_guide_stays_behind(tmp_path: Path) -> None:
    model = fitted(pa.ARMED("y ~ x1 + (1 | group)", DATA.frame), guide="structured", restarts=1)
    model.save(tmp_path / "m")
    loaded = pa.load(tmp_path / "m")
    assert_same_model(model, loaded, new_rows())
    with pytest.raises(NotFittedError, match="structured one is made of the training rows"):
        _ = loaded.guide


def test_nuts_draws(tmp_path: Path) -> None:
    model = fitted(pa.ARMED("y ~ x1 + (1 | group)", DATA.frame), inference="nuts", draws=6, warmup=20)
    model.save(tmp_path / "m")
    loaded = pa.load(tmp_path / "m")
    assert_same_model(model, loaded, new_rows())
    assert loaded._posterior.chains[0].module is loaded._posterior.chains[1].module


def test_what_the_user_added_to_the_arviz_object(tmp_path: Path) -> None:
    model = fitted(pa.ARMED("y ~ x1 + (1 | group)", DATA.frame))
    extra = (
        model.idata["posterior"].copy()
        if hasattr(model.idata, "groups")
        else model.idata["posterior"].to_dataset()
    )
    when = np.array(["2020-01-01", "2021-02-03"], dtype="datetime64[ns]")
    extra = extra.assign(when=("day", when), flag=("day", [True, False]), text=("day", ["a", "bcd"]))
    extra.attrs["numbers"] = np.array([1.0, np.inf])
    model.idata["posterior"] = extra if hasattr(model.idata, "groups") else xr.DataTree(extra)
    model.save(tmp_path / "m")
    found = groups_of(pa.load(tmp_path / "m").idata)["posterior"]
    assert found["when"].values.tolist() == when.tolist()
    assert found["flag"].dtype == bool
    assert found["text"].values.tolist() == ["a", "bcd"]
    assert found.attrs["numbers"] == [1.0, np.inf]


# --- priors ------------------------------------------------------------------------------------------------

PRIORS = [
    dist.Normal(0.1, 2.0),
    dist.StudentT(3.0, torch.tensor([0.0, 1.0]), 2.5),
    dist.HalfNormal(torch.tensor(0.3, dtype=torch.float64)),
    dist.HalfCauchy(1.0),
    dist.Exponential(2.0),
    dist.Gamma(2.0, 0.1),
    dist.InverseGamma(3.0, 2.0),
    dist.LogNormal(0.0, 0.5),
    dist.Uniform(0.0, 10.0),
    dist.Beta(2.0, 5.0),
    dist.Laplace(0.0, 1.0),
    dist.Cauchy(0.0, 1.0),
    dist.Weibull(1.0, 2.0),
    dist.Pareto(1.0, 3.0),
    dist.LKJCholesky(3, 2.0),
    dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    HalfStudentT(torch.tensor(3.0), torch.tensor(2.5)),
    dist.Normal(torch.zeros(2, 3), 1.0).to_event(2),
    torch.distributions.Normal(0.0, 1.0),
]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_priors_come_back(prior: Any) -> None:
    again = decode_prior(json.loads(json.dumps(encode_prior("x", prior))))
    assert again.batch_shape == prior.batch_shape
    assert again.event_shape == prior.event_shape
    value = prior.sample()
    assert torch.equal(torch.as_tensor(again.log_prob(value)), torch.as_tensor(prior.log_prob(value)))


def test_priors_that_a_file_cannot_keep(tmp_path: Path) -> None:
    class Mine(dist.Normal):
        pass

    for prior in (Mine(0.0, 1.0), dist.TransformedDistribution(dist.Normal(0.0, 1.0), [])):
        with pytest.raises(ArgumentError, match=r"prior of 'x1'.*cannot be saved"):
            encode_prior("x1", prior)
    model = fitted(pa.ARMED("y ~ x1 + (1 | group)", DATA.frame, priors={"x1": Mine(0.0, 1.0)}))
    with pytest.raises(ArgumentError, match="prior of 'x1'"):
        model.save(tmp_path / "m")


@pytest.mark.parametrize(
    "config",
    [
        {"class": "Delta", "args": {}},
        {"class": "os.system", "args": {"command": "true"}},
        {"class": "Normal", "args": {"loc": 0.0, "scale": 1.0, "validate_args": False}},
    ],
)
def test_priors_that_a_file_must_not_name(config: dict[str, Any]) -> None:
    with pytest.raises(FileFormatError, match="must not name"):
        decode_prior(config)


# --- files that are not whole ------------------------------------------------------------------------------


def test_save_needs_a_fit(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match="call fit"):
        pa.ARMED("y ~ x1 + (1 | group)", DATA.frame).save(tmp_path / "m")


def test_where_there_is_nothing(linear: pa.ARMED, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        pa.load(tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        linear.save(tmp_path / "no" / "m")
    with pytest.raises(ArgumentError, match="is a folder"):
        linear.save(tmp_path)
    with pytest.raises(FileFormatError, match="is a folder"):
        pa.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"x", "not a saved model"),
        (b"hello, this is a text file", "not a saved model"),
        (b"\x80\x04\x95" + b"pickle" * 20, "not a saved model"),
        (b"\xff" * 64, "not a saved model"),
    ],
)
def test_foreign_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        pa.load(tmp_path / "m")


def test_other_safetensors_files(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"format": "pyro_armed_else"}):
        save_file({"weight": torch.zeros(2)}, tmp_path / "m", metadata)
        with pytest.raises(FileFormatError, match="not a model saved by pyro_armed"):
            pa.load(tmp_path / "m")


def test_other_versions(tmp_path: Path) -> None:
    save_file({}, tmp_path / "m", {"format": "pyro_armed", "version": "99", "model": "{}"})
    with pytest.raises(FileFormatError, match=r"version 99.*reads version 1"):
        pa.load(tmp_path / "m")


@pytest.mark.parametrize("model", ["", "{", "[]", "{}", '{"design": {"kind": "other"}}'])
def test_damaged_headers(model: str, tmp_path: Path) -> None:
    save_file({}, tmp_path / "m", {"format": "pyro_armed", "version": "1", "model": model})
    with pytest.raises(FileFormatError, match=r"cannot be read|damaged"):
        pa.load(tmp_path / "m")


def test_truncated_files(linear: pa.ARMED, tmp_path: Path) -> None:
    linear.save(tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    for size in (4, 8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "part").write_bytes(whole[:size])
        with pytest.raises(FileFormatError):
            pa.load(tmp_path / "part")
    (tmp_path / "more").write_bytes(whole + b"x")
    with pytest.raises(FileFormatError):
        pa.load(tmp_path / "more")


def test_any_missing_part_is_noticed(network: pa.ARMED, tmp_path: Path) -> None:
    network.save(tmp_path / "m")
    tensors, header = read(tmp_path / "m")
    for key in header:
        if key == "libraries":
            continue
        write(tmp_path / "part", tensors, {k: v for k, v in header.items() if k != key})
        with pytest.raises(FileFormatError):
            pa.load(tmp_path / "part")
    for prefix in ("chain.", "network.", "guide.", "idata."):
        name = next(name for name in tensors if name.startswith(prefix))
        write(tmp_path / "part", {k: v for k, v in tensors.items() if k != name}, header)
        with pytest.raises(FileFormatError):
            pa.load(tmp_path / "part")


def test_a_failure_leaves_the_old_file(
    linear: pa.ARMED, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    linear.save(path)
    before = path.read_bytes()

    write_bytes = Path.write_bytes

    def fail(self: Path, content: bytes) -> int:
        write_bytes(self, content[:1000])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        linear.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_usual_permissions(linear: pa.ARMED, tmp_path: Path) -> None:
    linear.save(tmp_path / "m")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_saving_and_loading_move_no_random_state(linear: pa.ARMED, tmp_path: Path, unmoved_rng: Any) -> None:
    with unmoved_rng():
        linear.save(tmp_path / "m")
        pa.load(tmp_path / "m")
