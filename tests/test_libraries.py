"""Libraries of compiled steps: what their names depend on, and whose files are loaded."""

import os
import stat

import pytest
import torch
from test_compiled import CONTROLS, ROWS, Eager, objective_of
from test_compiled import compiled as compiled_step
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_armed import compiled, libraries
from pyro_armed.compiled import compiler_found
from pyro_armed.libraries import fingerprint, kept_library, load_library, private_folder


def graph_of(function, *example):
    return make_fx(function)(*example)


TWO, CONSTANT = torch.ones(2), torch.tensor([1.0, 2.0])
PLAIN = graph_of(lambda x: x * 2.0 + CONSTANT, TWO)


@pytest.mark.parametrize(
    "other",
    [
        {"graph": graph_of(lambda x: x * 2.5 + CONSTANT, TWO)},
        {"graph": graph_of(lambda x: x * 2.0 - CONSTANT, TWO)},
        {"graph": graph_of(lambda x: x * 2.0 + torch.tensor([1.0, 3.0]), TWO)},
        {"example": [torch.ones(3)]},
        {"example": [torch.ones(2, dtype=torch.float64)]},
        {"example": [torch.ones(4)[::2]]},
        {"facts": {"clip": 1}},
        {"facts": {"clip": 2.0}},
        {"facts": {"scales": torch.tensor([1.0, 2.0])}},
        {"facts": [["a", "b"], ["c"]]},
        {"facts": [["a"], ["b", "c"]]},
    ],
)
def test_a_name_tells_what_differs(other):
    plain = {"graph": PLAIN, "example": [TWO], "facts": {"clip": 1.0}}
    name = fingerprint(**plain)
    assert name == fingerprint(**{**plain, "graph": graph_of(lambda x: x * 2.0 + CONSTANT, TWO)})
    assert name == fingerprint(**{**plain, "example": [torch.zeros(2)]})  # values do not matter
    assert name != fingerprint(**{**plain, **other})


def test_what_is_not_known_by_its_value_has_no_name():
    graph = graph_of(lambda x: x * 2.0, TWO)
    node = next(n for n in graph.graph.nodes if n.op == "call_function")
    node.target = lambda x, y: x * y
    assert fingerprint(graph, [TWO], {}) is None
    assert fingerprint(PLAIN, [TWO], {"what": object()}) is None


def test_everything_that_an_update_holds_is_in_the_name():
    eager = Eager([objective_of("bernoulli")], 3, ["g"])
    step, state, controls = compiled_step(eager, [torch.tensor([0, 1, 2])])
    example = step._flat(state, torch.tensor([0, 1, 2]), controls)
    update, name = step.update, fingerprint(step.gradient.graph, example, step._facts())
    assert name is not None
    for key, value in dict(vars(update)).items():
        if key in ("parts", "frame"):  # they are in the graph and in the shapes
            continue
        setattr(update, key, "something else")
        assert fingerprint(step.gradient.graph, example, step._facts()) not in (None, name), key
        setattr(update, key, value)
    assert fingerprint(step.gradient.graph, example, step._facts()) == name


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_the_folder_is_the_users_alone(cache):
    folder = private_folder()
    assert folder.parent == cache
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    os.chmod(folder, 0o777)
    assert private_folder() is None
    with pytest.raises(RuntimeError, match="only this user"):
        kept_library("name", lambda: (PLAIN, [TWO]))


def test_a_file_that_others_can_write_is_not_loaded(cache):
    path = cache / "step.so"
    with pytest.raises(FileNotFoundError):
        load_library(path)
    path.write_bytes(b"anything")
    os.chmod(path, 0o660)
    with pytest.raises(RuntimeError, match="user's own"):
        load_library(path)
    os.chmod(path, 0o600)
    link = cache / "link.so"
    link.symlink_to(path)
    with pytest.raises(RuntimeError, match="user's own"):
        load_library(link)


def test_a_broken_file_is_made_anew(cache, monkeypatch):
    path = private_folder() / "name.so"
    path.write_bytes(b"not a library")
    os.chmod(path, 0o600)
    asked = []

    def make():
        asked.append(True)
        return PLAIN, [TWO]

    def compile_step(graph, example, place):
        assert place == path
        assert not place.exists()
        raise ValueError("no compiler today")

    monkeypatch.setattr(libraries, "_compile", compile_step)
    with pytest.raises(ValueError, match="no compiler today"):
        kept_library("name", make)
    assert asked == [True]


def test_steps_that_cannot_be_kept_go_the_old_way(monkeypatch):
    def refuse(name, make):
        raise RuntimeError("no folder")

    monkeypatch.setattr(compiled, "kept_library", refuse)
    monkeypatch.setattr(compiled, "inductor_run", lambda graph, example: graph)
    step, state, controls = compiled_step(Eager([objective_of("bernoulli")], 7), ROWS, inductor=True)
    assert step.seeded([3])(state, ROWS[0], controls).shape == (1,)


@pytest.mark.slow
@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler")
def test_the_next_step_of_the_kind_finds_the_library_and_is_the_same(cache, monkeypatch):
    eager = Eager([objective_of("bernoulli")], 7)
    step, start, _ = compiled_step(eager, ROWS, inductor=True)
    assert len(list((cache / "pyro_armed").iterdir())) == 1

    def traced(*given):
        raise AssertionError("traced again")

    monkeypatch.setattr(compiled, "_step_graph", traced)
    again, _, _ = compiled_step(Eager([objective_of("bernoulli", 1)], 7), ROWS, inductor=True)
    states = [{name: tensor.clone() for name, tensor in start.items()} for _ in range(2)]
    records = [
        torch.stack([run(state, rows, CONTROLS) for rows in ROWS])
        for run, state in zip((step.seeded([3]), again.seeded([3])), states, strict=True)
    ]
    assert torch.equal(*records)
    assert all(torch.equal(states[0][name], states[1][name]) for name in start)
    assert not torch.equal(states[0]["trained.torch.float64"], start["trained.torch.float64"])
