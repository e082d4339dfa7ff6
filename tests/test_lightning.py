"""Lightning trains the same objective: alone, in mixed precision, and in two processes."""

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyro_armed as pa
from pyro_armed.distributed import fit, fit_from
from pyro_armed.errors import ArgumentError, ConvergenceWarning

lightning = pytest.importorskip("lightning", reason="the extra 'lightning' is not installed")
armed = pytest.importorskip("pyro_armed.lightning")

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
FORMULA = "y ~ x1 + (1 | group)"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def trainer(epochs: int, **options: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, enable_checkpointing=False, **QUIET, **options
    )


def small() -> pa.ARMED:
    return pa.ARMED(FORMULA, pa.simulate.mixed_model(30, 10, seed=0).frame)


@pytest.mark.parametrize(("size", "schedule"), [(60, "plateau"), (14, "plateau"), (14, "cosine")])
def test_lightning_and_the_plain_loop_take_the_same_steps(size: int, schedule: str) -> None:
    """With 14 rows for 30 groups these are tables."""
    model = small()
    module = armed.ARMEDModule(model, early_stopping=False, schedule=schedule, seed=1)
    clipped = module.task._usual
    trainer(4).fit(module, datamodule=armed.ARMEDDataModule(model, batch_size=size, seed=1))
    assert clipped == float("inf") > module.task._usual
    assert bool(module.task._tables) == (size == 14)
    idata = module.finish(draws=20)
    how = {
        "batch_size": size,
        "early_stopping": False,
        "draws": 20,
        "progressbar": False,
        "schedule": schedule,
    }
    plain = fit(small(), epochs=4, seed=1, **how)  # type: ignore[arg-type]
    assert idata is model.idata
    np.testing.assert_allclose(idata["sample_stats"]["elbo"], plain["sample_stats"]["elbo"], rtol=1e-6)
    np.testing.assert_allclose(idata["posterior"]["1|group"], plain["posterior"]["1|group"], rtol=1e-6)


def test_a_rate_that_falls_needs_an_end() -> None:
    model = small()
    with pytest.raises(ArgumentError, match="pass max_epochs or max_steps"):
        trainer(-1).fit(
            armed.ARMEDModule(model, schedule="cosine"),
            datamodule=armed.ARMEDDataModule(model, batch_size=60),
        )


def test_training_stops_where_the_elbo_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_armed.training.Plateau.update", lambda self, window: "stop")
    model = small()
    module = armed.ARMEDModule(model)
    trainer(100).fit(module, datamodule=armed.ARMEDDataModule(model, batch_size=60))
    idata = module.finish(draws=20)
    assert idata["sample_stats"]["elbo"].sizes["step"] == 100
    assert idata.attrs["converged"] == 1


def test_mixed_precision_an_adversary_and_parquet(tmp_path: Path) -> None:
    frame = pa.simulate.mixed_model(30, 10, seed=0).frame
    frame.assign(b=frame["y"] > 0).to_parquet(tmp_path / "rows.parquet", row_group_size=100)
    model = pa.ARMED(
        "b ~ x1 + (1 + features | group)",
        tmp_path / "rows.parquet",
        family="bernoulli",
        network=pa.networks.MLP(hidden=(4,)),
        adversary=pa.Adversary(0.5),
    )
    module = armed.ARMEDModule(model, early_stopping=False)
    trainer(2, precision="bf16-mixed").fit(module, datamodule=armed.ARMEDDataModule(model, batch_size=60))
    idata = module.finish(draws=20)
    assert np.isfinite(idata["posterior"]["Intercept"]).all()
    assert {p.dtype for p in model.module.network.parameters()} == {torch.float32}  # type: ignore[union-attr]
    model.save(tmp_path / "model.armed")
    assert len(pa.load(tmp_path / "model.armed").evaluate(frame.assign(b=frame["y"] > 0))) > 2


def test_a_failure_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    class Broken(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            if pl_module.task.step == 7:
                raise RuntimeError("broken")

    model, path = small(), tmp_path / "run.ckpt"
    module = armed.ARMEDModule(model, early_stopping=False, checkpoint=path)
    data = armed.ARMEDDataModule(model, batch_size=60)
    with pytest.raises(RuntimeError, match="broken") as caught:
        trainer(4, callbacks=[Broken()]).fit(module, datamodule=data)
    assert f"is in '{path}'" in caught.value.__notes__[0]
    steps = len(module.task.records)
    assert steps in (6, 7)
    assert fit_from(small(), path, draws=20)["sample_stats"]["elbo"].sizes["step"] == steps
    model = small()
    module = armed.ARMEDModule(model, early_stopping=False)
    module.restore(path)
    trainer(2).fit(module, datamodule=armed.ARMEDDataModule(model, batch_size=60))
    assert module.finish(draws=20)["sample_stats"]["elbo"].sizes["step"] == steps + 10


SCRIPT = """
    import sys, warnings
    import lightning
    import pyro_armed as pa
    from pyro_armed.lightning import ARMEDDataModule, ARMEDModule

    warnings.simplefilter("ignore")
    model = pa.ARMED("y ~ x1 + (1 | group)", pa.simulate.mixed_model(30, 60, seed=0).frame)
    module = ARMEDModule(model, early_stopping=False)
    trainer = lightning.Trainer(
        accelerator="cpu", strategy="ddp", devices=2, max_epochs=25, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )
    trainer.fit(module, datamodule=ARMEDDataModule(model, batch_size=150))
    module.finish(draws=300)
    if trainer.global_rank == 0:
        model.save(sys.argv[1])
"""


@pytest.mark.slow
def test_ddp_agrees_with_one_process(tmp_path: Path) -> None:
    from test_distributed import agree

    path, out = tmp_path / "train.py", tmp_path / "two.armed"
    path.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path), str(out)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    model = pa.ARMED(FORMULA, pa.simulate.mixed_model(30, 60, seed=0).frame)
    one = fit(model, epochs=25, batch_size=300, early_stopping=False, draws=300, progressbar=False)
    agree(one, pa.load(out).idata)
