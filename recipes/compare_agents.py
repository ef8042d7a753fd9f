"""Compare patch agents: python recipes/compare_agents.py RECIPE.yaml [--variants none agentvit ...] [--seeds 0 1 2]

Trains every variant with every seed, one after another in one process, on the same data, steps and initial weights;
evaluates on all patches at a few points of training, whose time does not count. Writes compare.json after each run,
and compare.md and compare.png, to output_dir. A variant is the name of an agent, with options after a colon:
"random:return_fraction=0.2". Nothing is chosen on the split that is reported.
"""

import importlib.util
import json
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path


# This folder holds an evaluate.py, which must not hide the library of that name.
HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE]

import torch
import yaml
from transformers import TrainerCallback, set_seed

from hf_dynvit.agent_pictures import curves_plot
from hf_dynvit.data import SetEpoch, load_image_data
from hf_dynvit.data_source import DataArguments
from hf_dynvit.environment import measured_on
from hf_dynvit.settings import parse_settings
from hf_dynvit.trainer import DynViTTrainer
from hf_dynvit.training_args import DynViTTrainingArguments


spec = importlib.util.spec_from_file_location("recipe_of_training", HERE / "train.py")
train = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train)


@dataclass
class CompareArguments:
    """What to compare."""

    variants: list[str] = field(
        default_factory=lambda: ["none", "agentvit", "agentvit-plus", "random", "fixed", "center", "progressive"],
        metadata={"help": "agents, each with options after a colon: 'random:return_fraction=0.2'; 'none': dense"},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "seeds that each variant is trained with"})
    evaluations: int = field(default=5, metadata={"help": "evaluations during training, evenly spaced"})


def main(argv=None):
    """Run the comparison; returns the content of compare.json."""
    compare, model_args, data_args, args = parse_settings(
        sys.argv[1:] if argv is None else argv,
        CompareArguments,
        train.ModelArguments,
        DataArguments,
        DynViTTrainingArguments,
    )
    if args.world_size > 1:
        raise ValueError("agents are compared in one process")
    if args.max_steps < compare.evaluations or compare.evaluations < 1:
        raise ValueError(
            f"give max_steps, at least one for each of the {compare.evaluations} evaluations, got {args.max_steps}"
        )
    parsed = {variant: parse_variant(variant) for variant in compare.variants}
    folder = Path(args.output_dir)
    if (folder / "compare.json").exists():
        raise ValueError(f"{folder} already holds a comparison: give another output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "kind": "comparison of agents",
        "dataset": data_args.name(),
        "steps": args.max_steps,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps,
        **measured_on(args.device, "bfloat16 autocast" if args.bf16 else "float32"),
        "settings": {"model": asdict(model_args), "data": asdict(data_args), "training": args.to_sanitized_dict()},
        "runs": [],
    }
    for seed in compare.seeds:
        processor, config = train.load_base(model_args)
        data = load_image_data(data_args, processor, config, model_args.new_classifier, seed)
        results |= {"split": data.reported_split, "images": len(data.validation)}
        for variant, settings in parsed.items():
            options = settings | {
                "seed": seed,
                "output_dir": str(folder / f"{variant.replace(':', '_')}_{seed}"),
                "eval_strategy": "steps",
                "eval_steps": max(1, args.max_steps // compare.evaluations),
                "save_strategy": "no",
                "push_to_hub": False,
            }
            results["runs"].append({"variant": variant, **run(model_args, replace(args, **options), data)})
            (folder / "compare.json").write_text(json.dumps(results, indent=2) + "\n")
    results["summary"] = summarise(results["runs"])
    (folder / "compare.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "compare.md").write_text(markdown(results))
    try:
        curves_plot(mean_curves(results["runs"]), folder / "compare.png")
    except ImportError as error:
        train.logger.warning(f"no picture: {error}")
    return results


def parse_variant(variant):
    """`name` or `name:key=value,key=value` -> the training arguments that it stands for."""
    name, _, options = variant.partition(":")
    pairs = [option.partition("=") for option in options.split(",") if option]
    return {"agent": name, "agent_options": {key: yaml.safe_load(value) for key, _, value in pairs}}


def run(model_args, args, data):
    """Train one variant with one seed; what it reached, when, and at what price."""
    set_seed(args.seed)
    base_config = train.load_base(model_args)[1]
    model = train.load_model(model_args, base_config, data)
    trainer = DynViTTrainer(
        model=model,
        args=args,
        teacher=train.load_teacher(model_args, args, model.config),
        train_dataset=data.train,
        eval_dataset=data.validation,
        callbacks=[SetEpoch()],
    )
    clock = Clock()
    trainer.add_callback(clock)  # the last one: it counts what the agent does at the end of a step
    start_peak(args.device)
    trainer.train()
    peak = peak_megabytes(args.device)
    if not clock.points or clock.points[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()  # the clock notes it
    agent = None if trainer.agent is None else trainer.agent.report()
    if trainer.agent is not None:
        train.draw_agent_pictures(trainer.agent, data.validation, made(args.output_dir))
    costs = [entry["cost"] for entry in trainer.state.log_history if "cost" in entry]
    return {
        "seed": args.seed,
        "accuracy": clock.points[-1]["accuracy"],
        "train_seconds": clock.seconds,
        "agent": agent,
        "kept_share": 1.0 if agent is None else agent["kept"] / agent["patches"],
        "train_cost": statistics.mean(costs) if costs else None,
        "peak_megabytes": peak,
        "curve": clock.points,
    }


class Clock(TrainerCallback):
    """Seconds of training without those of evaluation, and what the evaluations found.

    Attributes:
        seconds: so far. points: [{"step", "seconds", "accuracy", "loss"}].
    """

    def __init__(self):
        self.seconds, self.points, self._running = 0.0, [], None

    def on_train_begin(self, args, state, control, **kwargs):
        self._running = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_evaluate:
            self._stop(args)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self._running is None and state.global_step:
            point = {"step": state.global_step, "seconds": self.seconds}
            self.points.append(point | {"accuracy": metrics["eval_accuracy"], "loss": metrics["eval_loss"]})
            self._running = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self._stop(args)

    def _stop(self, args):
        if self._running is None:
            return
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.seconds += time.perf_counter() - self._running
        self._running = None


def made(folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def start_peak(device):
    """Forget earlier peaks of memory, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_megabytes(device):
    """Peak memory since `start_peak`: of the device, on CPU of the whole process, the data included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):  # not Linux: of the whole life of the process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def summarise(runs):
    """Mean over seeds of each variant; the deviation of the accuracy where there are several."""
    summary = {}
    for variant in dict.fromkeys(entry["variant"] for entry in runs):
        own = [entry for entry in runs if entry["variant"] == variant]
        accuracies = [entry["accuracy"] for entry in own]
        summary[variant] = {
            "seeds": len(own),
            "accuracy": statistics.mean(accuracies),
            "accuracy_deviation": statistics.stdev(accuracies) if len(own) > 1 else None,
            "train_seconds": statistics.mean(entry["train_seconds"] for entry in own),
            "agent_seconds": statistics.mean(entry["agent"]["seconds"] if entry["agent"] else 0.0 for entry in own),
            "kept_share": statistics.mean(entry["kept_share"] for entry in own),
            "peak_megabytes": statistics.mean(entry["peak_megabytes"] for entry in own),
        }
    return summary


def mean_curves(runs):
    """variant -> [(seconds, accuracy)], each point the mean over seeds."""
    curves = {}
    for entry in runs:
        curves.setdefault(entry["variant"], []).append([(p["seconds"], p["accuracy"]) for p in entry["curve"]])
    return {
        variant: [
            tuple(statistics.mean(values) for values in zip(*points, strict=True)) for points in zip(*own, strict=True)
        ]
        for variant, own in curves.items()
    }


def markdown(results):
    """The table of compare.md."""
    dense = results["summary"].get("none", {}).get("train_seconds")
    lines = [
        f"On {results['device']}, {results['threads']} threads, {results['dtype']}, commit {results['commit']}, "
        f"{results['dataset']}, {results['steps']} steps of {results['batch_size']} images; top-1 on all patches of "
        f"{results['images']:,} images ({results['split']}): `{results['command']}`",
        "",
        "| agent | seeds | top-1 | deviation | training, s | of dense | agent, s | kept patches | peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant, row in results["summary"].items():
        deviation = "–" if row["accuracy_deviation"] is None else f"{100 * row['accuracy_deviation']:.2f}"
        share = "–" if not dense else f"{row['train_seconds'] / dense:.2f}"
        lines.append(
            f"| {variant} | {row['seeds']} | {100 * row['accuracy']:.2f} | {deviation} | {row['train_seconds']:.1f} | "
            f"{share} | {row['agent_seconds']:.1f} | {100 * row['kept_share']:.1f} % | {row['peak_megabytes']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
