"""Effects drawn group by group are those of the guide, whichever other groups are asked for."""

import numpy as np
import pytest
import torch
from hand_made import design, frame, module_of

from pyro_armed.draws import draw_tables
from pyro_armed.effect_tables import EffectTables, effect_numbers
from pyro_armed.guides import MeanFieldGuide
from pyro_armed.module import MixedEffectsModule
from pyro_armed.posterior import Chain

FORMULA = "y ~ x + (1 + x | g) + (1 | h)"


@pytest.fixture(scope="module")
def fitted() -> tuple[MixedEffectsModule, MeanFieldGuide]:
    module = module_of(design(FORMULA, frame(6)))
    guide = MeanFieldGuide(module, module.data, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for location, scale in zip(guide.locations, guide.log_scales, strict=True):
            location.normal_(generator=torch.Generator().manual_seed(location.numel()))
            scale.uniform_(-2.0, 0.0, generator=torch.Generator().manual_seed(location.numel()))
    return module, guide


def test_draws_have_the_means_and_sds_of_the_guide(
    fitted: tuple[MixedEffectsModule, MeanFieldGuide],
) -> None:
    _, guide = fitted
    tables = EffectTables.of(guide, draws=4000, seed=1)
    for name, location in tables.locations.items():
        drawn = tables._draw(name, torch.arange(len(location)))
        error = tables.scales[name] / 4000**0.5
        assert ((drawn.mean(0) - location).abs() < 4.5 * error).all()
        assert ((drawn.std(0) / tables.scales[name] - 1).abs() < 0.06).all()
    joined = torch.cat([tables._draw(n, torch.arange(3)).reshape(4000, -1) for n in tables.locations], dim=1)
    correlations = np.corrcoef(joined.T.numpy())
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.08


def test_numbers_of_one_draw(fitted: tuple[MixedEffectsModule, MeanFieldGuide]) -> None:
    assert effect_numbers(fitted[1]) == 2 * 6 + 3


def test_a_group_has_the_same_draws_in_any_company(
    fitted: tuple[MixedEffectsModule, MeanFieldGuide],
) -> None:
    module, guide = fitted
    tables, values = EffectTables.of(guide, draws=20, seed=1), draw_tables(module, guide, 20, seed=1).values
    whole = tables.draw(module, values, {"g": torch.arange(6), "h": torch.arange(3)})
    some = tables.draw(module, values, {"g": torch.tensor([4, 1])})
    assert set(some) == {"1|g", "x|g"}
    for name, value in some.items():
        assert torch.equal(value, whole[name][:, [4, 1]])
    other = EffectTables.of(guide, draws=20, seed=2).draw(module, values, {"h": torch.arange(3)})
    assert not torch.equal(other["1|h"], whole["1|h"])


def test_effects_are_offsets_times_sds_and_correlations(
    fitted: tuple[MixedEffectsModule, MeanFieldGuide],
) -> None:
    module, guide = fitted
    tables, values = EffectTables.of(guide, draws=7, seed=1), draw_tables(module, guide, 7, seed=1).values
    codes = torch.tensor([2, 5])
    found = tables.draw(module, values, {"g": codes})
    offsets = torch.stack([tables._draw(f"{name}_offset", codes) for name in ("1|g", "x|g")], dim=-1)
    sds = torch.stack([values["1|g_sigma"], values["x|g_sigma"]], dim=-1)
    expected = torch.einsum("skj,spj->spk", values["g_corr"], offsets) * sds[:, None]
    torch.testing.assert_close(torch.stack([found["1|g"], found["x|g"]], dim=-1), expected)


@torch.no_grad()
def test_globals_are_those_of_a_whole_draw(fitted: tuple[MixedEffectsModule, MeanFieldGuide]) -> None:
    module, guide = fitted
    values = draw_tables(module, guide, 3000, seed=0).values
    report = Chain(
        module,
        values
        | EffectTables.of(guide, 3000, 0).draw(module, values, {"g": torch.arange(6), "h": torch.arange(3)}),
    ).report()
    position = [site.name for site in guide.sites].index("1|h_sigma")
    logs = values["1|h_sigma"].log()
    assert float((logs.mean() - guide.locations[position]).abs()) < 0.05
    assert float((logs.std() / guide.log_scales[position].exp() - 1).abs()) < 0.06
    assert report["1|g"].shape == (3000, 6)
