"""Turn the dial of a model: python recipes/calibrate.py --model DIR --budget 0.6 --data_files train=FILE --output DIR2

Shifts all gates by one number until the mean cost on training images is the new budget, and saves the result as a model
of its own; gates that learn nothing keep the cost that they have. With `--budgets 0.8 0.65 0.5` the one result has
thresholds for all of them, and decides at any budget between (`model.set_budget`, evaluate.py --budget), as a cascade
(`--cascade 160@0.2 224@0.5`) does between the cost of its first look and that of all; with
`--milliseconds 8 --batch_size 1` an image takes so long on this device (latency.json has its latencies). The backbone is
not trained and no labels are used; a model trained for that budget is more accurate. With `--gates merge` a plain ViT
becomes a model that merges a little in every layer; on the same images its gates learn which tokens the prediction
depends on, unless `--importance false`. With `--bypass_images N` what skipped blocks and sub-layers add instead is fitted
first, of gates with a bypass.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml
from torch.utils.data import DataLoader, Subset
from transformers import AutoImageProcessor

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.data import DataArguments
from hf_dynvit.measure.forwards import DTYPES
from hf_dynvit.measure.trained_models import dense_vit, open_models
from hf_dynvit.model import PRESET_GATES, can_prepack
from hf_dynvit.model.budgets import check_budget
from hf_dynvit.model.gate_kinds import token_gates, unit_gates
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.bypass import check_bypass, fit_bypass
from hf_dynvit.training.calibration import calibrate, check_budgets, mean_cost, steady_range
from hf_dynvit.training.closed_form import fit_gates
from hf_dynvit.training.importance import fit_importance
from hf_dynvit.training.looks import choose_looks, read_looks
from hf_dynvit.training.resolution import choose_resolution, sizes_for


AT_ONCE = 64  # images of a forward, where the batch that is to be served says another number


@dataclass
class CalibrateArguments:
    """Which model, to which budget, and where to write it."""

    model: str | None = field(default=None, metadata={"help": "the trained model, or a plain ViT: folder or Hub id"})
    gates: str | None = field(
        default=None,
        metadata={"help": "what to put on a plain ViT first: a preset (merge) or a list of gates as YAML"},
    )
    resolution: str | None = field(
        default=None,
        metadata={
            "help": "side that images are resized to inside the model, with --gates; auto: the one nearest to the dense "
            "model's predictions at this budget; None: as they come"
        },
    )
    cascade: list[str] = field(
        default_factory=list,
        metadata={
            "help": "several looks at an image, the cheapest first, each as side of images @ mean cost: 160@0.2 224@0.5, "
            "or auto; only images that are not sure get the next, so that the mean cost is the budget"
        },
    )
    importance: bool | None = field(
        default=None,
        metadata={
            "help": "fit the scores of token gates to the importance of tokens first; default: for new gates alone"
        },
    )
    budget: float | None = field(
        default=None,
        metadata={"help": "mean cost to meet, in (0, 1]; gates that learn nothing have a cost of their own"},
    )
    budgets: list[float] = field(
        default_factory=list,
        metadata={"help": "several in place of one, for one model that decides at any between them"},
    )
    milliseconds: float | None = field(
        default=None, metadata={"help": "mean time of an image on this device in place of a budget, by its latencies"}
    )
    output: str | None = field(default=None, metadata={"help": "new folder for the result"})
    kernels: bool = field(
        default=False, metadata={"help": "with compiled kernels (model.prepack), for --milliseconds"}
    )
    images: int = field(default=512, metadata={"help": "training images to calibrate on"})
    bypass_images: int = field(
        default=0, metadata={"help": "training images to fit bypasses on before the thresholds are set; 0: leave them"}
    )
    batch_size: int = field(default=64, metadata={"help": "images per forward; with milliseconds, to be served"})
    dtype: str = field(default="float32", metadata={"help": f"one of {list(DTYPES)}"})
    seed: int = field(default=0, metadata={"help": "which images are used"})

    def __post_init__(self):
        aims = (self.budget is not None, bool(self.budgets), self.milliseconds is not None)
        if not self.model or not self.output or sum(aims) != 1:
            raise ValueError(
                f"--model, --output and one of --budget, --budgets and --milliseconds are needed, got {self}"
            )
        for budget in self.wanted():
            check_budget(budget)
        if self.milliseconds is not None and not 0 < self.milliseconds < float("inf"):
            raise ValueError(f"milliseconds must be positive and finite, got {self.milliseconds}")
        if self.kernels and self.milliseconds is None:
            raise ValueError("kernels change times, not budgets: they need milliseconds, got none")
        if self.images < 1 or self.bypass_images < 0:
            raise ValueError(
                f"images must be at least 1 and bypass_images 0, got {self.images} and {self.bypass_images}"
            )
        read_looks(self.cascade)
        if self.cascade and (self.budget is None or self.resolution is not None or self.bypass_images):
            raise ValueError("a cascade is for one --budget, has sizes of its own and no bypass_images to fit")
        if self.resolution is not None and self.gates is None:
            raise ValueError(f"resolution {self.resolution} is for new gates on a plain ViT: give --gates too")
        if self.resolution not in (None, "auto"):
            if not self.resolution.isdecimal():
                raise ValueError(f"resolution must be a number or auto, got {self.resolution!r}")
            self.resolution = int(self.resolution)
        if self.resolution == "auto" and (self.budget is None or self.bypass_images):
            raise ValueError("resolution auto is for one --budget, without bypass_images")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {self.dtype!r}")
        if Path(self.output).exists() and any(Path(self.output).iterdir()):
            raise ValueError(f"output {self.output!r} is not empty: give a new folder")

    def wanted(self):
        """The mean costs to meet."""
        return self.budgets or ([] if self.budget is None else [self.budget])


def main(argv=None):
    """Calibrate and save; returns the shift and the mean cost on the training images."""
    args, data_args = parse_settings(sys.argv[1:] if argv is None else argv, CalibrateArguments, DataArguments)
    data_args.validation_split = data_args.train_split
    (entrant,) = open_models([args.model], data_args, "cpu", DTYPES[args.dtype])
    model = with_gates(entrant.model, args, None if args.resolution == "auto" else args.resolution)
    if (args.budgets or args.milliseconds) and not model.learned_gates():
        raise ValueError("--budgets and --milliseconds need gates that learn: others keep the cost that they have")
    if args.resolution != "auto":
        check_budgets(model, args.wanted())
    if args.bypass_images:
        check_bypass(model)
    order = torch.randperm(len(entrant.images), generator=torch.Generator().manual_seed(args.seed))
    loader, of_bypass = (
        DataLoader(Subset(entrant.images, order[:count].tolist()), args.batch_size if args.wanted() else AT_ONCE)
        for count in (args.images, args.bypass_images)
    )
    if args.bypass_images:
        shares = fit_bypass(model, of_bypass)
        print(f"bypasses explain {min(shares.values()):.0%} to {max(shares.values()):.0%} of what is skipped")
    batches = [batch["pixel_values"] for batch in loader]
    if args.resolution == "auto":
        model, shift, cost = at_best_size(entrant.model, batches, args)
    else:
        if args.cascade == ["auto"] and args.gates and model.learned_gates():
            model.set_cascade(best_looks(entrant.model, batches, args))
        shift, cost = meet(model, batches, args)
    model.float().save_pretrained(args.output)
    AutoImageProcessor.from_pretrained(args.model).save_pretrained(args.output)
    if model.config.budget_shifts is not None:
        shown = ", ".join(f"{budget} ({added:+.3f})" for budget, added in model.config.budget_shifts)
        print(f"one model for the budgets {shown}; it decides at {model.config.budget} until model.set_budget")
    shown = f"images are done from a probability of {shift:.3f}" if model.config.cascade else None
    how = shown or f"all gates shifted by {shift:+.3f}"
    print(f"{how}: mean cost {cost:.3f} on {len(loader.dataset)} training images")
    return shift, cost


def meet(model, batches, args):
    """Fit importance where it is asked for, and bring the thresholds to what is wanted; returns shift and cost."""
    if args.gates and args.importance is not False and unit_gates(model) and args.budget and not args.cascade:
        return together(model, batches, args.budget)
    if args.importance or (args.importance is None and args.gates and token_gates(model)):
        shares = fit_importance(model, batches)
        print(f"scores explain {min(shares.values()):.0%} to {max(shares.values()):.0%} of the importance of tokens")
    if args.milliseconds is not None:
        return to_milliseconds(model, batches, args)
    if args.budgets:
        return calibrate(model, batches, budgets=args.budgets)
    learned = model.learned_gates()
    calibrates = learned or model.config.cascade is not None
    found = calibrate(model, batches, args.budget) if calibrates else (0.0, mean_cost(model, batches))
    model.set_budget(args.budget)
    return found


def together(model, batches, budget):
    """Heads and sub-layers beside tokens, all fitted in closed form; returns shift and cost."""
    tried = fit_gates(model, batches, budget)
    for one in sorted(tried):
        print(
            f"{one.share:.0%} by heads and sub-layers: {one.distance:.3f} nats from the dense model at {one.cost:.3f}"
        )
    model.set_budget(budget)
    return 0.0, tried[0].cost


def at_best_size(vit, batches, args):
    """The model at the size of images that leaves its predictions nearest to the dense model's; with shift and cost."""
    found = {}

    def build(size):
        model = with_gates(vit, args, size)
        found[size] = meet(model, batches, args)
        return model

    sizes = [size for size in sizes_for(vit.config, args.budget) if reaches(with_gates(vit, args, size), args.budget)]
    if not sizes:
        raise ValueError(f"a budget of {args.budget} is out of reach of these gates at every size of images")
    dense = DynViTForImageClassification.from_vit(dense_vit(vit)).to(vit.dtype)
    best, trials = choose_resolution(dense, build, sizes, batches)
    for trial in trials:
        size = f"{trial.resolution} px" if trial.resolution else "images as they come"
        print(f"{size}: {trial.distance:.3f} nats from the dense model at cost {trial.cost:.3f}")
    return best.model, *found[best.resolution]


def best_looks(vit, batches, args):
    """The looks of a cascade, at the sizes of images that leave each nearest to the dense model's predictions."""

    def build(size, cost):
        one = replace(args, budget=cost, cascade=[])
        model = with_gates(vit, one, size)
        meet(model, batches, one)
        return model

    dense = DynViTForImageClassification.from_vit(dense_vit(vit)).to(vit.dtype)
    looks = choose_looks(dense, build, vit.config, args.budget, batches)
    print("looks: " + ", ".join(f"{look['resolution']} px at a mean cost of {look['budget']}" for look in looks))
    return looks


def reaches(model, budget):
    """Whether thresholds can bring the model to a budget."""
    least, most = steady_range(model)
    return least <= budget <= most


def to_milliseconds(model, batches, args):
    """Calibrate to a mean time of the prepacked model; writes latency.json, returns shift and cost."""
    if can_prepack():
        model.prepack(args.kernels)
    found = calibrate(model, batches, milliseconds=args.milliseconds, batch_size=args.batch_size)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    found.latencies.save(Path(args.output) / "latency.json")
    model.set_budget(min(1.0, found.cost))
    print(
        f"{found.milliseconds:.2f} ms per image in batches of {args.batch_size} by the table of latencies; on the first images "
        f"{found.clock_predicted:.2f}, where the clock says {found.clock:.2f} ({found.error:+.1%})"
    )
    return found.shift, found.cost


def with_gates(model, args, resolution):
    """The model itself, or one with the weights of a plain ViT and fresh gates; with a cascade, if one is asked for."""
    if args.gates is None:
        looks = read_looks(args.cascade, model.config, args.budget, bool(model.config.gates))
        return model.set_cascade(looks) if looks else model
    if model.config.gates:
        raise ValueError(f"{args.model} has gates already: --gates is for a plain ViT, got {args.gates!r}")
    gates = args.gates if args.gates in PRESET_GATES else yaml.safe_load(args.gates)
    looks = read_looks(args.cascade, model.config, args.budget, bool(gates))
    made = DynViTForImageClassification.from_vit(dense_vit(model), gates=gates, resolution=resolution, cascade=looks)
    return made.to(model.dtype).eval()


if __name__ == "__main__":
    main()
