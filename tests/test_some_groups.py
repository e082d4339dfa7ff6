"""The posterior of some of the groups says of them what that of all says."""

import pytest
import torch
from hand_made import design, frame, module_of
from hand_made import posterior_of as made_posterior

from pyro_armed import some_groups
from pyro_armed.effect_tables import EffectTables
from pyro_armed.errors import ArgumentError
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.posterior import Posterior
from pyro_armed.some_groups import blocks_of, posterior_of, recoded

FORMULA = "y ~ x + (1 + x | g) + (1 | h)"


@pytest.fixture
def posterior() -> Posterior:
    made = made_posterior(module_of(design(FORMULA, frame(6))), draws=10)
    for chain in made.chains:
        chain.quality = {"khat": torch.tensor(0.1), "khat|g": torch.arange(6.0)}
    return made


def test_predictors_of_their_rows_are_the_same(posterior: Posterior) -> None:
    module = posterior.chains[0].module
    codes = {"g": torch.tensor([1, 4])}
    some = posterior_of(posterior, codes)
    assert module.data is not None
    data = module.data.select(torch.isin(module.data.codes["g"], codes["g"]).nonzero()[:, 0])
    given = recoded(data, module.spec, codes)
    for whole, part in zip(posterior.chains, some.chains, strict=True):
        assert part.values["1|g"].shape == (10, 2)
        assert part.values["1|h"].shape == (10, 3)
        assert part.quality["khat|g"].tolist() == [1.0, 4.0]
        for values, own in zip(whole.chunks(10), part.chunks(10), strict=True):
            expected = module.linear_predictor(module.spec.mu, values, data)
            found = part.module.linear_predictor(part.module.spec.mu, own, given)
            torch.testing.assert_close(found, expected)
    assert some.chains[0].module.spec.group("g").labels == ("g1", "g4")
    assert some.chains[0].module is some.chains[1].module


def test_draws_that_are_not_held_are_made(posterior: Posterior) -> None:
    chain = posterior.chains[0]
    guide = MeanFieldGuide(chain.module, chain.module.data, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    chain.tables = EffectTables.of(guide, 10, seed=3)
    for name in chain.module.effect_names():
        del chain.values[name]
    one = Posterior([chain])
    assert not one.is_held
    some = posterior_of(one, {"g": torch.tensor([2])})
    assert some.is_held
    assert some.chains[0].values["x|g"].shape == (10, 1)
    assert torch.equal(posterior_of(one, {}).chains[0].values["x|g"][:, [2]], some.chains[0].values["x|g"])


def test_too_many_at_once_are_refused(posterior: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = posterior.chains[0]
    guide = MeanFieldGuide(chain.module, chain.module.data, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    chain.tables = EffectTables.of(guide, 10, seed=3)
    monkeypatch.setattr(some_groups, "HELD", 10)
    with pytest.raises(ArgumentError, match="effects of 6 groups do not fit"):
        posterior_of(posterior, {})


def test_blocks_cover_all_groups_once(posterior: Posterior) -> None:
    blocks = list(blocks_of(posterior, "g", numbers=10 * 2 * 4))
    assert [block.tolist() for block in blocks] == [[0, 1, 2, 3], [4, 5]]
