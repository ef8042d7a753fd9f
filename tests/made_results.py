"""Results as the recipes write them, made up: through the schema, with values of no meaning for what is not given."""

import json

import yaml

from hf_dynvit.measure.dense import OURS, PROGRAMS
from hf_dynvit.measure.forwards import RandomSpeed
from hf_dynvit.measure.per_image import PerImage
from hf_dynvit.measure.speed import Speed
from hf_dynvit.report.comparison_results import Comparison, Run
from hf_dynvit.report.results import AgentRun, Evaluation, Scores, Search, StepTime, Training
from hf_dynvit.report.schema import fill


BLOCK = [{"gate": "block", "layers": [1, 2, 3]}]
MEASURED = {
    "device": "A CPU",
    "instructions": None,
    "dtype": "float32",
    "threads": 2,
    "versions": {"torch": "2"},
    "seed": 0,
    "commit": "abc",
}
MODEL = {
    "preset": None,
    "layer_mask": None,
    "num_layers": 4,
    "dataset": "pets",
    "split": "validation",
    "split_files": ["test.parquet"],
    "images": 1000,
    "accuracy_top5": 0.9,
    "gmacs_dense": 1.0,
    "usage": {},
    "batch_size": 64,
}
SHARES = {kind: {"1": 0.5, "2": 0.75, "3": 0.0} for kind in ("attention", "mlp")}


def given(accuracy=0.6, cost=1.0):
    """`Scores` of a checkpoint as given."""
    return Scores(accuracy=accuracy, accuracy_top5=0.9, cost=cost, gmacs=cost)


def agent(desired=8, name="random", epsilon=None, **options):
    """An agent's part of results: half of 16 patches kept."""
    return AgentRun(
        name=name, n_patch_desired=desired, patches=16, kept=8.0, seconds=2.0, options=options, epsilon=epsilon
    )


def training(seed=0, accuracy=0.5, gates=BLOCK, budget=0.65, start="vit", name="model", options=None, **facts):
    """A `Training`; `gates` as entries, or as words of the command line. `options`: training options."""
    entries = yaml.safe_load(gates) if isinstance(gates, str) else gates
    cost = facts.pop("cost", budget if entries else 1.0)
    settings = {"seed": seed, "output_dir": f"out/{name}_{seed}", "learning_rate": 1e-4, "tells apart": name}
    content = {
        **MEASURED,
        **MODEL,
        "gates": entries,
        "learned": {entry["gate"]: 0.0 for entry in entries or [] if entry["gate"] != "random"},
        "accuracy": accuracy,
        "cost": cost,
        "cost_min": cost - 0.2,
        "cost_max": cost + 0.2,
        "gmacs": cost,
        "start_weights": None,
        "price": None,
        "train_seconds": 60.0 * (1 + (seed or 0)),
        "agent": None,
        "chosen": None,
        "resumed": False,
        "images_seen": 6400,
        "epochs": 1.0,
        "steps": 100,
        "processes": 1,
        "seed": seed,
        "command": f"python recipes/train.py {name} --seed {seed}",
        "settings": {
            "model": {"model_name_or_path": start, "gates": str(gates), "budget": budget},
            "data": {"min_crop_area": 0.5},
            "training": settings | (options or {}),
        },
    }
    return fill(Training, content | facts, "training")


def policy(seed=0, accuracy=0.5, **facts):
    """A `Training` of gates that skip blocks, by their preset."""
    return training(seed, accuracy, **{"preset": "layerskip", "learned": {"block": 0.1}, **facts})


def dense_ms(fastest=3.0):
    """The dense ways that a published speed needs, SDPA being the fastest."""
    return {"eager": 9e9, "sdpa": fastest, **dict.fromkeys(PROGRAMS, 9e9), OURS: fastest}


def speed(batch_size=8, gain=1.5, cost=0.65, kind=Speed, **facts):
    """A `Speed` whose packed model is `gain` times as fast as the dense one."""
    content = {
        "batch_size": batch_size,
        "rounds": 9,
        "prepacked": True,
        "timed_cost": cost,
        "dense_ms": dense_ms(3 * gain),
    }
    content |= {"other_ms": {}, "packed_ms": 3.0, "peak_mib": {"dense": 20.0, OURS: 20.0, "packed": 15.0}}
    content |= {"prepacked_mib": {"dense": 0.0, OURS: 0.0, "packed": 0.0}}
    return fill(kind, content | facts, "speed")


def random_speed(batch_size=8, gain=1.5, cost=0.65, size="tiny", dtype="float32", gates="patch", **facts):
    """A row of the benchmark."""
    return speed(batch_size, gain, cost, RandomSpeed, size=size, dtype=dtype, gates=gates, **facts)


def evaluation(gates=BLOCK, accuracy=0.5, cost=0.65, model="out/model_0", **facts):
    """An `Evaluation`, timed at two batch sizes."""
    content = {
        **MEASURED,
        **MODEL,
        "gates": gates,
        "preset": "layerskip" if gates == BLOCK else None,
        "learned": {"block": 0.1} if gates == BLOCK else {},
        "accuracy": accuracy,
        "cost": cost,
        "cost_min": cost,
        "cost_max": cost,
        "gmacs": cost,
        "usage": SHARES,
        "model": model,
        "budget": 0.65,
        "dense_model": None,
        "throughput": [speed(8, 1.5, cost), speed(32, 2.0, cost)],
        "command": f"python recipes/evaluate.py {model} {accuracy}",
    }
    return fill(Evaluation, content | facts, "evaluation")


def per_image(**facts):
    """A `PerImage` of 200 images, of which ten are right only by the model's own thresholds, and six only at equal costs."""
    content = {"images": 200, "accuracy": 0.7, "cost": 0.5, "cost_std": 0.1, "cost_min": 0.25, "cost_max": 0.8}
    content |= {
        "equal_accuracy": 0.68,
        "equal_cost": 0.499,
        "equal_cost_std": 0.002,
        "only_shared": 10,
        "only_equal": 6,
    }
    return fill(PerImage, content | {"correlation": 0.314, "dense_accuracy": 0.72} | facts, "per_image")


def search(model="out/model_0", **facts):
    """A `Search` whose front is one mask, which leaves three quarters of the layers."""
    scores = {"accuracy": 0.6, "error": 0.4, "cost": 0.5, "reward": 0.1, "layers": 0.75}
    point = {"bits": "101", "layer_mask": [], **scores, "reported": scores}
    content = {
        **MEASURED,
        "model": model,
        "objectives": "reward+layers",
        "method": "exhaustive",
        "space": "3 bits, block",
    }
    content |= {"masks_scored": 8, "seconds": 60.0, "images_to_choose_on": 300, "images_reported_on": 300}
    content |= {"dataset": "pets", "split": "held out of train", "images_from": "held out of train", "reward": {}}
    content |= {"latencies": None, "unmasked": scores, "picked": point, "front": [point]}
    return fill(
        Search, content | {"settings": {"batch_size": 8}, "command": "python recipes/search.py"} | facts, "search"
    )


def step_time(model="vit", **facts):
    """A `StepTime` of nothing but the dense step, unless `steps` are given."""
    content = {**MEASURED, "model": model, "batch_size": 64, "rounds": 9, "dense_ms": {"eager": 4.0, "sdpa": 2.0}}
    content |= {"leanest": "sdpa", "dense_peak_mib": 10.0, "steps": []}
    return fill(StepTime, content | {"command": "python recipes/step_time.py"} | facts, "step_time")


def run(variant, seed, accuracies=(0.5, 0.8), seconds=100.0, **facts):
    """A `Run` of a comparison whose evaluations are evenly spaced in time."""
    curve = [
        {"step": 10 * (at + 1), "seconds": seconds * (at + 1) / len(accuracies), "accuracy": accuracy, "loss": 1.0}
        for at, accuracy in enumerate(accuracies)
    ]
    dense = variant.startswith("none")
    content = {
        "variant": variant,
        "seed": seed,
        "accuracy": accuracies[-1],
        "chosen": None,
        "train_seconds": seconds,
        "agent": None if dense else agent(6),
        "kept_share": 1.0 if dense else 0.5,
        "train_cost": None,
        "step_mib": {"first": 40.0, "last": 80.0},
        "curve": curve,
        "commit": "abc",
        "command": f"python recipes/compare_agents.py r.yaml --seeds {seed}",
    }
    return fill(Run, content | facts, "run")


def comparison(*runs, **facts):
    """A `Comparison` of these runs."""
    options = {"learning_rate": 1e-3, "n_patch_desired": 8, "seed": 0, "output_dir": "a", "agent": "random"}
    settings = {"model": {"gates": "none"}, "data": {"min_crop_area": 0.8}, "training": options}
    content = {**MEASURED, "dataset": "digits", "steps": 20, "batch_size": 8, "evaluations": 2, "threads": 1}
    content |= {"command": "python recipes/compare_agents.py r.yaml", "split": "test", "images": 1000}
    content |= {"split_files": ["t.parquet"], "curves_on": "held out of train", "curve_images": 90}
    return fill(Comparison, content | {"settings": settings, "runs": list(runs)} | facts, "comparison")


def written(folder, results, name="results.json", **changes):
    """A file with these results, with changes to its content; its path. A field changed to `...` is left out."""
    content = results.to_json() | changes
    path = folder / name
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return path
