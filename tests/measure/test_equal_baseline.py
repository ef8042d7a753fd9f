"""The dense model is the fastest there is: compiled with frozen weights, and ours without gates; nothing less is published."""

import copy

import pytest
import torch
from image_files import save_checkpoint, write_parquet
from made_results import MEASURED, evaluation, random_speed, speed, written
from models import gated as random_gated
from models import images
from recipe_place import END, START, report

from hf_dynvit.benchmark import BenchmarkArguments
from hf_dynvit.data.rows import DataArguments
from hf_dynvit.measure.compiled import Ahead
from hf_dynvit.measure.dense import AHEAD, OURS, PROGRAMS, ahead, dense_calls
from hf_dynvit.measure.forwards import Setting, measure
from hf_dynvit.measure.random_decisions import gate_entries
from hf_dynvit.measure.trained_models import open_models, time_batches
from hf_dynvit.model.prepack import is_prepacked
from hf_dynvit.report.results import Benchmark
from hf_dynvit.report.schema import check_published, fill


COMPILED = "ignore::DeprecationWarning"  # of the compiler's own imports


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings(COMPILED)
def test_the_compiled_dense_model_has_its_weights_in_the_program_and_leaves_the_setting_off(tiny_vit, fresh_compiler):
    vit, x = tiny_vit(1), images(2)
    with torch.inference_mode():
        program = Ahead(copy.deepcopy(vit))  # of weights that may never ask for a gradient
        before = program(x).logits.clone()
        torch.testing.assert_close(before, vit(x).logits, atol=1e-5, rtol=0)
        program.module.module.classifier.bias.add_(1.0)
        assert torch.equal(program(x).logits, before)  # a constant of the program
        assert not torch._inductor.config.freezing
    assert torch.equal(program(x).logits, before) and not program(x).logits.requires_grad
    assert list(program.programs) == [(x.shape, x.dtype, torch.get_num_threads())]
    assert torch.equal(program(x.to(memory_format=torch.channels_last)).logits, before)
    with pytest.raises(ValueError, match="for images on CPU, got some on meta"):
        program(x.to("meta"))


def test_what_was_compiled_before_stands_among_the_dense_ways(tiny_vit):
    vit = tiny_vit(1)
    made = ahead(vit)
    known, fresh = (dense_calls(vit, compiled=which) for which in (made, True))
    assert all(known[name] is made[name] is not fresh[name] for name in PROGRAMS)
    assert not set(PROGRAMS) & set(dense_calls(vit, compiled=False))
    modules = {name: program.module.module.vit for name, program in made.items()}
    assert {name: module.config._attn_implementation for name, module in modules.items()} == PROGRAMS
    assert all(module.classifier.weight is vit.classifier.weight for module in modules.values())


def test_ours_without_gates_is_the_dense_model_prepacked(tiny_vit):
    vit, x = tiny_vit(2), images(2)
    ours = dense_calls(vit, compiled=False)[OURS]
    assert is_prepacked(ours) and not any(len(gates) for gates in ours.gates)
    assert ours.classifier.weight is vit.classifier.weight
    with torch.no_grad():
        torch.testing.assert_close(ours(x).logits, vit(x).logits, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings(COMPILED)
def test_speed_is_against_the_fastest_dense_and_against_ours_without_gates(tiny_vit, fresh_compiler):
    setting = Setting("small", "float32", 2, [("patch", 0.7)], 2, 2, 1.0, compiled=True, prepacked=True)
    for row in measure(tiny_vit(2), setting, seed=0):
        assert set(row.dense_ms) == {"eager", "sdpa", *PROGRAMS, OURS}
        assert row.speedup == min(row.dense_ms.values()) / row.packed_ms
        assert row.gates_speedup == row.dense_ms[OURS] / row.packed_ms
        assert row.realised == row.speedup * row.timed_cost / row.dense_cost
        assert (row.dense_cost == 1) == (row.fastest in ("eager", "sdpa"))  # the others leave out what is not read
        check_published([row], "speed.json")


def test_a_model_compiled_as_a_whole_is_timed_beside_itself_as_packed(tiny_vit, tmp_path):
    folder = save_checkpoint(tmp_path / "gated", random_gated(tiny_vit(2, num_labels=3), "tome"))
    (entrant,) = open_models([folder], DataArguments(data_files=write_parquet(tmp_path)))
    asked = []

    def program(pixel_values):
        asked.append(len(pixel_values))
        return entrant.model(pixel_values)

    found = time_batches(entrant, 2, 0.1, rounds=5, compiled=False, program=program)
    assert set(asked) == {2} and found.program_speedup == min(found.dense_ms.values()) / found.program_ms
    assert found.best() == max(found.speedup, found.program_speedup)
    alone = time_batches(entrant, 2, 0.1, rounds=5, compiled=False)
    assert (alone.program_ms, alone.program_speedup, alone.best()) == (None, None, alone.speedup)


def test_working_memory_counts_the_prepacked_weights(tiny_vit, tmp_path):
    vit = tiny_vit(2, hidden_size=256, intermediate_size=1024, num_labels=3)
    folder = save_checkpoint(tmp_path / "gated", random_gated(vit, gate_entries("patch+sublayer", 2)))
    entrants = open_models([folder], DataArguments(data_files=write_parquet(tmp_path)))
    entrants[0].model.prepack()
    with torch.no_grad():
        entrants[0].model(images(4))  # has kept its copies long before it is timed
    row = time_batches(entrants[0], 4, 1.0, 1, compiled=False)
    weights = (
        sum(layer.weight.nbytes for layer in vit.vit.layers.modules() if isinstance(layer, torch.nn.Linear)) / 2**20
    )
    assert set(row.peak_mib) == set(row.prepacked_mib) == {"dense", OURS, "packed"}
    # Products of [CLS] alone, in the last layer, are too small to prepack: its queries and its output projection.
    assert 0.85 * weights < row.prepacked_mib[OURS] < weights
    assert 0 < row.prepacked_mib["packed"] <= 1.05 * weights
    assert row.prepacked_mib["dense"] == 0 and row.peak_mib["dense"] < row.peak_mib[OURS]
    assert all(row.peak_mib[name] > row.prepacked_mib[name] for name in row.peak_mib)


@pytest.mark.parametrize(
    "names, missing",
    [(("eager", "sdpa"), OURS), (("eager", "sdpa", OURS), AHEAD), (("eager", AHEAD, OURS), "sdpa")],
)
def test_a_speed_against_less_than_all_dense_models_is_not_published(names, missing, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}{END}")
    few = dict.fromkeys(names, 1.0)
    results = fill(Benchmark, {**MEASURED, "command": "x", "rows": [random_speed(dense_ms=few)]}, "made")
    for made in (results, evaluation(throughput=[speed(dense_ms=few)])):
        with pytest.raises(ValueError, match=rf"made.json is against .*lacks .*{missing}.*measure anew"):
            report.main(["--readme", str(readme), str(written(tmp_path, made, "made.json"))])
    assert readme.read_text() == f"{START}{END}"


def test_the_dense_model_is_compiled_unless_it_is_told_not_to():
    assert BenchmarkArguments().compile
