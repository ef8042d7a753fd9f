"""Kernels: the same decisions, costs and logits from compiled C++ as from plain PyTorch, and only where they may serve."""

from pathlib import Path

import pytest
import torch
from models import GATE_SETS, gated, images, run

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.model import kernels
from hf_dynvit.model.compaction import take_out
from hf_dynvit.model.decisions import Places, TokenState
from hf_dynvit.model.gate import Exploration
from hf_dynvit.model.matching import match


@pytest.fixture(scope="session")
def operators():
    try:
        kernels.load_kernels()
    except RuntimeError as error:
        pytest.skip(str(error))
    found, kernels._operators = kernels._operators, None  # other tests are of plain PyTorch
    return found


@pytest.fixture
def both(operators, monkeypatch):
    """A function that is called plain, then with kernels; it gives both results."""

    def call(function):
        plain = function()
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "_operators", operators)
            return plain, function()

    return call


def assert_same(plain, fast, atol=1e-5):
    torch.testing.assert_close(fast.logits, plain.logits, atol=atol, rtol=0)
    torch.testing.assert_close(fast.cost, plain.cost)
    for one, other in zip(plain.decisions, fast.decisions, strict=True):
        for name, decided in one._asdict().items():
            found = getattr(other, name)
            assert (decided is None) == (found is None), name
            assert decided is None or torch.equal(decided, found), name


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("gates", GATE_SETS)
def test_decisions_costs_and_logits_are_those_of_plain_pytorch(tiny_vit, both, gates, batch):
    model, pixels = gated(tiny_vit(), GATE_SETS[gates]), images(batch)

    def forward():
        torch.manual_seed(0)
        return run(model, "packed", pixels)

    assert_same(*both(forward))


@pytest.mark.parametrize("gates", ["merge", "merge by distance"])
@pytest.mark.parametrize("shift", [None, -1.0, torch.tensor([0.5, -1.0, -3.0])])
def test_thresholds_are_shifted_alike_for_all_images_or_for_each(tiny_vit, both, gates, shift):
    model, pixels = gated(tiny_vit(), GATE_SETS[gates]), images(3)
    plain, fast = both(lambda: run(model, "packed", pixels, exploration=Exploration(shift=shift)))
    assert_same(plain, fast)
    assert shift is None or plain.cost.min() < 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(9, 9), (9, 5), (2, 9)])
def test_tokens_move_as_in_plain_pytorch(both, dtype, lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    x = torch.randn(2, 9, 24, generator=generator).to(dtype)
    alive = torch.arange(9) < torch.tensor(lengths).unsqueeze(1)
    keep = (torch.rand(2, 9, generator=generator) < 0.6) & alive
    keep[:, :2] = True
    into = torch.where(torch.rand(2, 9, generator=generator) < 0.7, 1, torch.arange(9))  # some are dropped, not merged
    size = torch.randint(1, 4, (2, 9), generator=generator).float()
    places = torch.stack([torch.randperm(20, generator=generator)[:9].sort().values for _ in range(2)])
    left = torch.zeros(2, 20, dtype=torch.bool).scatter(1, places, alive)
    state = TokenState(None if alive.all() else alive, size, None, Places(places, left))

    def move():
        with torch.no_grad():
            return take_out(x, keep, into, state, rounded=True)

    (taken, after, gone), (fast_taken, fast_after, fast_gone) = both(move)
    assert (gone != torch.arange(20)).any()
    assert torch.equal(gone, fast_gone) and taken.used.lengths == fast_taken.used.lengths
    torch.testing.assert_close(fast_taken.rows, taken.rows, atol=1e-6 if dtype == torch.float32 else 0.05, rtol=0)
    torch.testing.assert_close(fast_after.size, after.size)
    assert torch.equal(fast_after.places.index, after.places.index)
    assert torch.equal(fast_after.places.alive, after.places.alive)


def test_gates_may_give_views(both):
    x, keep = torch.randn(2, 6, 8), (torch.arange(6) < 4).expand(2, -1)
    into = torch.tensor([0, 1, 2, 3, 1, 1]).expand(2, -1)
    with torch.no_grad():
        (plain, state, _), (fast, fast_state, _) = both(lambda: take_out(x, keep, into, TokenState(), rounded=False))
    torch.testing.assert_close(fast.rows, plain.rows)
    assert torch.equal(fast_state.size, state.size)


@pytest.mark.parametrize(("into", "error"), [(7, IndexError), (-1, IndexError), (5, ValueError)])
def test_no_token_leaves_for_one_that_is_not_there(operators, into, error):
    keep, into = torch.arange(6).unsqueeze(0) < 4, torch.tensor([[0, 1, 2, 3, into, into]])
    with torch.no_grad(), pytest.raises(error, match="a token leaves for"):
        operators.take_out(torch.zeros(1, 6, 8), keep, into, None, None, None, 6, 0, 0)


def test_one_row_serves_all_images_and_sizes_may_be_in_16_bit(both, operators):
    x, keep = torch.randn(3, 6, 8), torch.arange(6).expand(3, -1) < 4
    into, size = torch.tensor([[0, 1, 2, 3, 1, 1]]), torch.full((3, 6), 2.0, dtype=torch.bfloat16)
    with torch.no_grad():
        plain, fast = both(lambda: take_out(x, keep, into, TokenState(size=size), rounded=False))
        torch.testing.assert_close(fast[0].rows, plain[0].rows, atol=1e-2, rtol=0)  # shares in 16 bit
        scores, weight = torch.zeros(3, 6, 1), torch.ones(1, 1)
        one, each = torch.tensor([-1.0]), torch.tensor([-1.0] * 3)
        kept = [operators.pairs(x, scores, None, 1, weight, 0.0, shift, 0.0, 0.0)[0] for shift in (one, each)]
    assert torch.equal(*kept) and not kept[0].all()


def test_where_nothing_leaves_nothing_changes(both):
    x, keep, into = torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool), torch.arange(6).expand(2, -1)
    state = TokenState(places=Places(torch.arange(6).expand(2, -1) + 1, torch.ones(2, 9, dtype=torch.bool)))
    with torch.no_grad():
        for known, tokens in ((TokenState(), 6), (state, 9)):
            for taken, after, gone in both(lambda known=known: take_out(x, keep, into, known, rounded=True)):
                assert taken is None and after is known and torch.equal(gone, torch.arange(tokens).expand(2, -1))


def test_a_partner_that_is_not_a_number_shows_in_all_distances(both):
    x = torch.randn(1, 9, 8)
    x[0, 3] = torch.nan
    with torch.no_grad():
        plain, fast = both(lambda: match(x))
    torch.testing.assert_close(fast.distance, plain.distance, equal_nan=True)
    assert fast.distance.isnan().all() and torch.equal(plain.partner, fast.partner)


def test_what_is_not_a_number_is_kept_and_shows(tiny_vit, both):
    model, pixels = gated(tiny_vit(), GATE_SETS["merge by distance"]), images(2)
    pixels[1, 0, 0, 0] = torch.nan
    plain, fast = both(lambda: run(model, "packed", pixels))
    assert fast.logits[1].isnan().all() and torch.equal(plain.cost, fast.cost)
    torch.testing.assert_close(fast.logits[0], plain.logits[0], atol=1e-5, rtol=0)


def test_images_without_partners_and_single_tokens_match_nothing(both):
    for tokens in (1, 2, 3):
        x = torch.randn(2, tokens, 8)
        with torch.no_grad():
            plain, fast = both(lambda x=x: match(x))
        assert torch.equal(plain.partner, fast.partner) and plain.distance.shape == fast.distance.shape


def test_gradients_autocast_and_other_dtypes_stay_in_plain_pytorch(operators, monkeypatch):
    monkeypatch.setattr(kernels, "_operators", operators)
    x = torch.zeros(1, 2, 4)
    assert kernels.kernels(x) is None  # a gradient may be wanted
    with torch.no_grad():
        assert kernels.kernels(x) is operators
        assert kernels.kernels(x.double()) is None and kernels.kernels(x.half()) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels.kernels(x) is None


def test_prepack_loads_them_on_request_and_says_what_is_missing(tiny_vit, operators, monkeypatch):
    monkeypatch.setattr(kernels, "_operators", None)  # and this at the end
    model = DynViTForImageClassification.from_vit(tiny_vit(), gates="merge")
    model.prepack()
    assert not kernels.kernels_loaded()
    model.prepack(kernels=True)
    assert kernels.kernels_loaded()
    monkeypatch.setattr(kernels, "_operators", None)
    monkeypatch.setattr(kernels, "NAME", "hf_dynvit_elsewhere")
    monkeypatch.setattr("torch.utils.cpp_extension.load_inline", _without_compiler)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler and ninja.*Ninja is required.*leave out kernels=True"):
        model.prepack(kernels=True)


def _without_compiler(*args, **options):
    raise RuntimeError("Ninja is required to load C++ extensions")


def test_a_compile_that_was_interrupted_leaves_nothing_to_wait_for(tmp_path, monkeypatch):
    """Each start compiles in a folder of its own, where torch's lock stays behind."""
    folders = []

    def interrupted(*_, build_directory, **options):
        folders.append(build_directory)
        (Path(build_directory) / "lock").touch(exist_ok=False)
        raise KeyboardInterrupt

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(kernels, "_operators", None)
    monkeypatch.setattr(kernels, "NAME", "hf_dynvit_elsewhere")
    monkeypatch.setattr("torch.utils.cpp_extension.load_inline", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            kernels.load_kernels()
    assert len(set(folders)) == 2


def test_what_was_compiled_is_moved_and_loaded_the_next_time(tmp_path, monkeypatch):
    loaded = []

    def compiled(name, *_, build_directory, **options):
        assert not loaded
        (Path(build_directory) / f"{name}.so").touch()

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr("torch.utils.cpp_extension.LIB_EXT", ".so")
    monkeypatch.setattr("torch.utils.cpp_extension.load_inline", compiled)
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    for _ in range(2):
        kernels._load_library()
    assert loaded == list(tmp_path.glob("*/*.so"))
