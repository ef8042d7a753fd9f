"""Compare patch agents: python recipes/compare_agents.py RECIPE.yaml [--variants none agentvit ...] [--seeds 0 1 2]

Trains every variant with every seed, one after another in one process, on the same data, steps and initial weights;
evaluates on all patches at a few points of training, on a part of train (`validation_fraction`), and once at the end on
the split that is reported; their time does not count. Writes compare.json after each run, and compare.md and compare.png
at the end, to output_dir; the same command goes on where it was interrupted. Parts that were run apart (`--seeds 1` with
an output_dir of its own) become one by merge_comparisons.py. A variant is the name of an agent, with options after a
colon: "random:return_fraction=0.5,n_patch_desired=20"; "none:max_steps=700" is the dense model in fewer steps.
"""

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from transformers import set_seed
from transformers.utils import logging

from hf_dynvit.agents import build_agent, parse_variant
from hf_dynvit.data import DataArguments, crop_of, cropping, load_image_data
from hf_dynvit.measure import measured_on
from hf_dynvit.report import Comparison, Run, read
from hf_dynvit.report.comparison import FOUND, check_same, publish, save
from hf_dynvit.report.pictures import draw_agent
from hf_dynvit.report.plots import drawn
from hf_dynvit.report.results import AgentRun
from hf_dynvit.report.schema import fill
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.arguments import DynViTTrainingArguments
from hf_dynvit.training.starting_model import ModelArguments, load_base, load_model, load_teacher
from hf_dynvit.training.trainer import DynViTTrainer
from hf_dynvit.training.training_step import TrainingClock, TrainingCost, TrainingStep


logger = logging.get_logger("hf_dynvit.recipes")


# The learned ones, the unlearned twins of ours (novelty alone, and chance, with its schedule and its merging), other rules.
TWINS = ("agentvit-plus:credit=none", "random:merge=true,return_fraction=0.5")
VARIANTS = ("none", "agentvit", "agentvit-dqn", "agentvit-plus", *TWINS, "random", "fixed", "center", "progressive")


@dataclass
class CompareArguments:
    """What to compare."""

    variants: list[str] = field(
        default_factory=lambda: list(VARIANTS),
        metadata={"help": "agents, each with options after a colon: 'random:return_fraction=0.5'; 'none': dense"},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "seeds that each variant is trained with"})
    evaluations: int = field(default=5, metadata={"help": "evaluations during training, evenly spaced"})


def main(argv=None):
    """Run the comparison; returns the content of compare.json."""
    compare, model_args, data_args, args = parse_settings(
        sys.argv[1:] if argv is None else argv,
        CompareArguments,
        ModelArguments,
        DataArguments,
        DynViTTrainingArguments,
    )
    if args.world_size > 1:
        raise ValueError("agents are compared in one process")
    folder = Path(args.output_dir)
    settings = {variant: run_arguments(variant, args, compare.evaluations) for variant in compare.variants}
    measured = measured_on(args.device, "bfloat16 autocast" if args.bf16 else "float32")
    source = {name: measured[name] for name in ("commit", "command")}  # may differ from run to run
    results = Comparison(
        dataset=data_args.name(),
        steps=args.max_steps,
        batch_size=args.train_batch_size * args.gradient_accumulation_steps,
        evaluations=compare.evaluations,
        **measured,
        settings={"model": asdict(model_args), "data": asdict(data_args), "training": args.to_sanitized_dict()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    results = go_on(results, folder / "compare.json")
    finished = {(entry.variant, entry.seed) for entry in results.runs}
    for seed in compare.seeds:
        missing = [variant for variant in settings if (variant, seed) not in finished]
        if not missing:
            continue
        processor, config = load_base(model_args)
        processor = cropping(processor, data_args.crop_pct)
        data = load_image_data(data_args, processor, config, model_args.new_classifier, seed)
        results = replace(results, **reported(data_args, data, processor))
        check_agents(load_model(model_args, config, data), [settings[variant] for variant in missing])
        for variant in missing:
            output_dir = folder / f"{variant.replace(':', '_')}_{seed}"
            run_args = replace(settings[variant], seed=seed, output_dir=str(output_dir))
            origin = source | {"seed": seed, "variant": variant}
            results.runs.append(Run(**run(model_args, run_args, data), **origin))
            save(results, folder)
    return publish(results, folder)


def reported(data_args, data, processor):
    """Which images the accuracy is reported on, and which ones training is followed on."""
    held_out = f"held out of {data_args.train_split}" if data_args.validation_fraction else data.reported_split
    return {
        "split": data.reported_split,
        "split_files": data_args.files_of(data.reported_split),
        "images": len(data.validation),
        "crop_pct": crop_of(json.loads(processor.to_json_string())),
        "curves_on": held_out,
        "curve_images": len(data.selection),
    }


def run_arguments(variant, args, evaluations):
    """The training arguments of a variant; the agent that the recipe names has the recipe's options, unless given."""
    options = {"max_steps": args.max_steps} | parse_variant(variant)
    if options["agent"] == args.agent:
        options["agent_options"] = (args.agent_options or {}) | options["agent_options"]
    steps = options["max_steps"]
    if not isinstance(steps, int) or steps < evaluations or evaluations < 1:
        raise ValueError(
            f"give max_steps, at least one for each of the {evaluations} evaluations, got {steps!r} for {variant!r}"
        )
    options |= {"eval_strategy": "steps", "eval_steps": steps // evaluations}
    options |= {"save_strategy": "no", "push_to_hub": False}
    if options["agent"] == "none":
        options["agent_evaluation"] = "all"
    return replace(args, **options)


def check_agents(model, settings):
    """Refuse agents that do not fit before the first variant is trained."""
    for args in settings:
        if args.agent != "none":
            build_agent(model, args)


def go_on(results, file):
    """`results` with the runs that `file` holds of an earlier, interrupted start, if there is one."""
    if not file.exists():
        return results
    earlier, now = read(file), fill(Comparison, json.loads(json.dumps(asdict(results))), "this comparison")
    check_same({str(file): earlier, "this comparison": now})
    logger.info(f"{file} holds {len(earlier.runs)} finished runs: they are not run again")
    return replace(results, **{name: getattr(earlier, name) for name in (*FOUND, "runs")})


def run(model_args, args, data):
    """Train one variant with one seed; what it reached, when, and at what price."""
    set_seed(args.seed)
    base_config = load_base(model_args)[1]
    model = load_model(model_args, base_config, data)
    teacher = load_teacher(model_args, args, model.config)
    trainer = DynViTTrainer(model=model, args=args, teacher=teacher, **data.for_trainer())
    cost, clock = TrainingCost(trainer), TrainingClock()
    trainer.add_callback(cost)
    trainer.add_callback(clock)
    trainer.train()
    if not clock.points or clock.points[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()  # the clock notes it
    seconds, curve = clock.seconds, list(clock.points)
    final = trainer.evaluate(data.validation)
    agent = None if trainer.agent is None else AgentRun.of(trainer.agent.report())
    if trainer.agent is not None:
        drawn(draw_agent, trainer.agent, data.validation, made(args.output_dir))
    return {
        "accuracy": final["eval_accuracy"],
        "chosen": on_chosen_patches(final),
        "train_seconds": seconds,
        "agent": agent,
        "kept_share": 1.0 if agent is None else agent.kept / agent.patches,
        "train_cost": cost.mean(),
        "step_mib": step_mib(trainer, data.train),
        "curve": curve,
    }


def on_chosen_patches(metrics):
    """What an evaluation found on the patches that the agent chose; None where it ran on all of them alone."""
    if "eval_chosen_accuracy" not in metrics:
        return None
    return {name: metrics[f"eval_chosen_{name}"] for name in ("accuracy", "cost")}


def step_mib(trainer, dataset):
    """Working memory of the first training step and of the last one, which may run on more patches; after training."""
    items = [dataset[index % len(dataset)] for index in range(trainer.args.train_batch_size)]
    step = TrainingStep(trainer, trainer.data_collator(items))
    found = {}
    for name, at in (("first", 0), ("last", trainer.state.max_steps - 1)):
        trainer.state.global_step = at
        found[name] = step.peak_mib()
    return found


def made(folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


if __name__ == "__main__":
    main()
