"""The recipe of all runtimes: a table of what gates gain in each, and what it refuses ahead."""

import importlib.util
from dataclasses import replace

import pytest
from recipe_place import report, runtimes
from transformers import AutoImageProcessor

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.measure.ways import WayTime
from hf_dynvit.report import read
from hf_dynvit.report.runtime_results import front_rows, rows_of
from hf_dynvit.report.stored import stored_name


pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs hf_dynvit[deploy]",
)


@pytest.fixture
def merging(place):
    folder = place.folder / "merging"
    if not folder.exists():
        DynViTForImageClassification.from_vit(place.vit, gates="merge").save_pretrained(folder)
        AutoImageProcessor.from_pretrained(place.vit).save_pretrained(folder)
    return str(folder)


def test_gains_of_a_model_in_a_runtime_are_measured_stored_and_shown(place, merging):
    words = [
        "--models",
        merging,
        "--runtimes",
        "ONNX Runtime",
        "--precisions",
        "float32",
        "--data_files",
        *place.files,
    ]
    words += ["--batch_sizes", "1", "2", "--images", "3", "--timed_images", "4", "--seconds", "0.05"]
    output = place.folder / "everywhere"
    (found,) = runtimes.main([*words, "--check_images", "5", "--output_dir", str(output)])
    made = read(output / "merging" / "runtimes.json")
    assert made.times == found.times and made.scores == found.scores and made.fixed == ["openvino"]
    assert (made.images, made.checked, made.random) == (4, 5, False)
    assert [row.batch_size for row in rows_of(made)] == [1, 2]
    for row in rows_of(made):
        assert row.dense == row.fastest and row.gain(row.dense) == row.dense.ms / row.gated.ms and row.open.cost >= 1
        assert all(score.images == 5 and 0 <= score.accuracy <= 1 for score in row.scores)
    shown = report.main([str(output / "merging" / "runtimes.json")])
    assert "### Every runtime" in shown and shown.count("| ONNX Runtime | float32 |") == 2
    assert runtimes.PACKAGES[0] in made.versions and stored_name(output / "merging" / "runtimes.json") == "merging"
    with pytest.raises(ValueError, match=r"would hold \['merging'\] twice"):
        runtimes.main([*words, "--output_dir", str(output)])


def test_the_rival_is_the_fastest_dense_one_of_all_runtimes_in_the_same_number_format(place):
    def time(runtime, precision, gates, ms):
        given = {"runtime": runtime, "precision": precision, "gates": gates, "ms": ms}
        return WayTime(**given, batch_size=1, how="", cost=0.5 if gates == "gated" else 1.0, rounds=3)

    times = [time("OpenVINO", "int8", "dense", 1.0), time("ONNX Runtime", "int8 dynamic", "dense", 3.0)]
    times += [time("ONNX Runtime", "int8 dynamic", "gated", 2.0), time("OpenVINO", "float32", "dense", 8.0)]
    times += [time("OpenVINO", "float32", "gated", 4.0), time("PyTorch", "bfloat16", "gated", 1.0)]
    base = {
        "model": "m",
        "decides": "d",
        "random": False,
        "dataset": "photos",
        "images": 4,
        "checked": 0,
        "scores": [],
    }
    where = {"device": "CPU", "instructions": "AVX2", "dtype": "float32", "threads": 2, "seed": 0, "versions": {}}
    results = runtimes.Runtimes(**base, **where, fixed=["openvino"], times=times, commit="abc", command="python x")
    small, full = rows_of(results)  # in 16 bits there is no dense one
    assert small.gain(small.dense) == 1.5 and small.gain(small.fastest) == 0.5 and small.fastest.runtime == "OpenVINO"
    assert full.gain(full.fastest) == 2.0 and full.fixed and not small.fixed
    rows = front_rows([results, replace(results, random=True)])
    assert [row["batch 1"] for row in rows] == ["3.0 → 2.0: 1.50×", "8.0 → 4.0: 2.00×"] * 2
    assert rows[1]["runtime"] == "OpenVINO, fixed merges" and rows[2]["model"] == "m (random weights)"
    assert "8.0 → 4.0: 2.00×" in report.render_clock([results])
    torches = [time("PyTorch", "float32", gates, ms) for gates, ms in (("dense", 6.0), ("gated", 4.0))]
    torches.append(time("PyTorch", "float32", "fixed merges", 3.0))
    own, fixed = rows_of(replace(results, times=torches))
    assert (own.gain(own.dense), fixed.gain(fixed.dense)) == (1.5, 2.0) and fixed.fixed and not own.fixed
    (row,) = front_rows([replace(results, times=torches)])  # of each runtime the fastest way
    assert (row["runtime"], row["batch 1"]) == ("PyTorch, fixed merges", "6.0 → 3.0: 2.00×")
    alone = time("PyTorch", "bfloat16", "gated", 1.0)  # faster, with no dense model beside it there
    (row,) = front_rows([replace(results, times=[*torches, alone, time("OpenVINO", "bfloat16", "dense", 9.0)])])
    assert row["batch 1"] == "6.0 → 3.0: 2.00×"


def test_random_weights_are_brought_to_their_budget(place):
    given = ["--sizes", "tiny", "--runtimes", "ONNX Runtime", "--precisions", "float32", "--data_files", *place.files]
    args, data_args = runtimes.parse_settings(
        [*given, "--output_dir", "never", "--images", "4", "--budget", "0.6"],
        runtimes.RuntimesArguments,
        runtimes.ImageArguments,
    )
    entrant = runtimes.random("tiny", args)
    assert (
        entrant.random
        and entrant.model.config.budget == 0.6
        and {entry["gate"] for entry in entrant.model.config.gates} == {"merge"}
    )
    again = runtimes.random("tiny", args)
    same = zip(entrant.model.parameters(), again.model.parameters(), strict=True)
    assert all((one == other).all() for one, other in same)


def test_what_cannot_be_timed_is_refused_before_any_work(place, merging):
    words = ["--models", merging, "--data_files", *place.files, "--output_dir", str(place.folder / "never")]
    with pytest.raises(ValueError, match="--output_dir and --models or --sizes are needed"):
        runtimes.main(["--data_files", *place.files])
    missing = [*words[:3], "validation=absent.parquet", *words[-2:]]
    for _ in range(2):  # an attempt leaves nothing that stands in the way of the next
        with pytest.raises(FileNotFoundError, match="there is no file 'absent.parquet'"):
            runtimes.main([*missing[:-1], str(place.folder / "tried")])
    with pytest.raises(ValueError, match=r"sizes must be of .* got \['huge'\]"):
        runtimes.main([*words, "--sizes", "huge"])
    with pytest.raises(ValueError, match=r"batch_sizes must be in 1\.\.32, timed_images, got \[64\]"):
        runtimes.main([*words, "--batch_sizes", "64"])
    with pytest.raises(ValueError, match=r"fixed must be of .* got \['coreml'\]"):
        runtimes.main([*words, "--fixed", "coreml"])
    with pytest.raises(ValueError, match="'tome' has none"):
        runtimes.main([*words, "--sizes", "tiny", "--gates", "tome"])
    with pytest.raises(ValueError, match='leave out "int8 dynamic"'):
        runtimes.main([*words, "--fixed", "onnx", "--precisions", "int8 dynamic"])
    with pytest.raises(ValueError, match="has neither gates nor a cascade"):
        runtimes.main(["--models", place.vit, *words[2:]])
    skipping = DynViTForImageClassification.from_vit(place.vit, gates=[{"gate": "sublayer"}])
    assert runtimes.fixed_formats(skipping, None) == [] == runtimes.fixed_formats(skipping, [])
    with pytest.raises(ValueError, match="merges can be fixed where merge gates alone drop tokens"):
        runtimes.fixed_formats(skipping, ["onnx"])
    assert not (place.folder / "never").exists()
