"""Turn the dial of a model: python recipes/calibrate.py --model DIR --budget 0.6 --data_files train=FILE --output DIR2

Shifts all gates by one number until the mean cost on training images is the new budget, and saves the result as a model
of its own; gates that learn nothing keep the cost that they have. With `--budgets 0.8 0.65 0.5` the one result has
thresholds for all of them, and decides at any budget between (`model.set_budget`, evaluate.py --budget), as a cascade
(`--cascade 160@0.2 224@0.5`) does between the cost of its first look and that of all; with
`--milliseconds 8 --batch_size 1` an image takes so long on this device (latency.json has its latencies, if it has gates).
The backbone is not trained and no label is read, a column `image` is enough; a model trained for that budget is more
accurate. With `--gates merge` a plain ViT becomes a model that merges a little in every layer; on the same images its gates
learn which tokens the prediction depends on, and gates of heads and sub-layers what skipping each costs it, unless
`--importance false`. With `--bypass_images N` what skipped blocks and sub-layers add instead is fitted first, of gates with
a bypass. `--fixed true` leaves a model that merges as many tokens in every image, those of the least logit.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from transformers import AutoImageProcessor

from hf_dynvit.data import ImageArguments, crop_of, cropping
from hf_dynvit.measure.files import check_new_folder
from hf_dynvit.measure.forwards import DTYPES
from hf_dynvit.measure.latency import check_layers
from hf_dynvit.measure.provenance import measured_on
from hf_dynvit.measure.trained_models import open_models
from hf_dynvit.model.budgets import check_budget
from hf_dynvit.model.configuration_dynvit import check_last_layer
from hf_dynvit.report.calibration_results import Calibration
from hf_dynvit.report.cards import before, describe_calibration
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.bypass import check_bypass, fit_bypass
from hf_dynvit.training.calibration import calibrate, check_budgets, mean_cost
from hf_dynvit.training.dial import at_best_size, best_looks, fits_units, meet, with_gates
from hf_dynvit.training.fixed import check_fixable, fix_merges
from hf_dynvit.training.harm import check_precision
from hf_dynvit.training.looks import chosen, read_looks
from hf_dynvit.training.timed_calibration import TimedCalibration


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
            "model's predictions at this budget, or in this time, there without gates, too; None: as they come"
        },
    )
    cascade: list[str] = field(
        default_factory=list,
        metadata={
            "help": "several looks at an image, the cheapest first, each as side of images @ mean cost: 160@0.2 224@0.5, "
            "auto (two for the budget) or every (three for any); only unsure images get the next: the mean cost is the budget"
        },
    )
    last_layer: str | None = field(
        default=None,
        metadata={
            "help": "read: the last layer computes what the classifier reads, from which logits stay what they are and the cost falls; "
            "None: as the model has it"
        },
    )
    importance: bool | None = field(
        default=None,
        metadata={
            "help": "fit the scores of token gates to the importance of tokens first, and of new gates of heads and sub-layers to "
            "what skipping costs; default: for new gates alone"
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
    fixed: bool = field(
        default=False,
        metadata={
            "help": "merge in every image as many tokens as images merge on average at this budget, in each look of a cascade: a "
            "look then costs the same for all, and compiles as a whole"
        },
    )
    output: str | None = field(default=None, metadata={"help": "new folder for the result"})
    kernels: bool = field(
        default=False, metadata={"help": "with compiled kernels (model.prepack), for --milliseconds"}
    )
    images: int = field(default=512, metadata={"help": "training images to calibrate on"})
    bypass_images: int = field(
        default=0,
        metadata={
            "help": "training images to fit bypasses on before the thresholds are set; 0: leave them, but fit fresh ones with the "
            "gates of heads and sub-layers"
        },
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
        check_last_layer(self.last_layer)
        if self.last_layer is not None and self.milliseconds is not None:
            raise ValueError("a time is met by latencies of whole layers: --milliseconds goes without --last_layer")
        read_looks(self.cascade)
        if self.cascade and (self.budget is None or self.resolution is not None or self.bypass_images):
            raise ValueError("a cascade is for one --budget, has sizes of its own and no bypass_images to fit")
        if self.fixed and self.budget is None:
            raise ValueError("fixed merges are for one --budget")
        if self.resolution is not None and self.gates is None:
            raise ValueError(f"resolution {self.resolution} is for new gates on a plain ViT: give --gates too")
        if self.resolution not in (None, "auto"):
            if not self.resolution.isdecimal():
                raise ValueError(f"resolution must be a number or auto, got {self.resolution!r}")
            self.resolution = int(self.resolution)
        if self.resolution == "auto" and (self.budgets or self.bypass_images):
            raise ValueError("resolution auto is for one --budget, or --milliseconds, without bypass_images")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {self.dtype!r}")
        check_new_folder(self.output)

    def wanted(self):
        """The mean costs to meet."""
        return self.budgets or ([] if self.budget is None else [self.budget])


def main(argv=None):
    """Calibrate and save; returns the shift and the mean cost on the training images."""
    args, data_args = parse_settings(sys.argv[1:] if argv is None else argv, CalibrateArguments, ImageArguments)
    data_args.validation_split = data_args.train_split
    (entrant,) = open_models([args.model], data_args, "cpu", DTYPES[args.dtype], False, args.seed)
    rows, terms = before(args.model)
    model = with_gates(entrant.model, args, None if args.resolution == "auto" else args.resolution)
    if args.milliseconds is not None:
        check_layers(model)
    if (args.budgets or args.milliseconds) and not model.learned_gates():
        raise ValueError("--budgets and --milliseconds need gates that learn: others keep the cost that they have")
    if not (model.config.gates or model.config.cascade or args.gates):
        raise ValueError(f"{args.model} has no gates, and costs what it costs: give --gates merge, or another preset")
    chooses_looks = bool(chosen(args.cascade) and args.gates)  # their budgets follow from the sizes that it tries
    if args.resolution != "auto" and not chooses_looks:
        check_budgets(model, args.wanted())
    if args.bypass_images:
        check_bypass(model)
    if args.fixed:
        check_fixed(model)
    if fits_units(model, args):
        check_precision(model)
    if model.config.cascade is not None and not data_args.validation_fraction:
        print(
            "note: a cascade is surer of images that it was trained on; if these are, hold some out: --validation_fraction"
        )
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
        model, found = at_best_size(entrant.model, batches, args)
    else:
        if chooses_looks and model.learned_gates():
            model.set_cascade(best_looks(entrant.model, batches, args))
        if chooses_looks:
            check_budgets(model, args.wanted())
        found = meet(model, batches, args)
    shift, cost = found[:2]
    if args.fixed:
        fix_merges(model, torch.cat(batches).float())
        if model.config.cascade is None:
            cost = mean_cost(model, batches)
            model.config.budget = min(1.0, cost)
        else:
            shift, cost = calibrate(model, batches, args.budget)
    model.float().save_pretrained(args.output)
    if isinstance(found, TimedCalibration):
        found.latencies.save(Path(args.output) / "latency.json")
    cropping(AutoImageProcessor.from_pretrained(args.model), data_args.crop_pct).save_pretrained(args.output)
    held_out = "held out of " if data_args.validation_fraction else ""
    done = Calibration(
        model=args.model,
        images=len(loader.dataset),
        split=held_out + data_args.train_split,
        crop_pct=crop_of(json.loads(entrant.processor)),
        calibrated=bool(model.learned_gates() or model.config.cascade),
        cost=cost,
        budget=model.config.budget,
        budgets=[budget for budget, _ in model.config.budget_shifts or []],
        milliseconds=args.milliseconds,
        before=rows,
        terms=terms | {"model_id": None},  # it is another model
        **measured_on("cpu", args.dtype, args.seed),
    )
    describe_calibration(model, done, args.output)
    if model.config.budget_shifts is not None:
        shown = ", ".join(f"{budget} ({added:+.3f})" for budget, added in model.config.budget_shifts)
        print(f"one model for the budgets {shown}; it decides at {model.config.budget} until model.set_budget")
    shown = "as many merges in every image" if args.fixed else None
    shown = f"images are done from a probability of {shift:.3f}" if model.config.cascade else shown
    shown = "no gates, by the clock" if not model.config.gates and args.milliseconds else shown
    how = shown or ("each kind of gates shifted by itself" if shift is None else f"all gates shifted by {shift:+.3f}")
    print(f"{how}: mean cost {cost:.3f} on {len(loader.dataset)} training images")
    return shift, cost


def check_fixed(model):
    """ValueError for a model whose cost would differ between images even if its merges were fixed."""
    check_fixable(model)
    others = sorted({entry["gate"] for entry in model.config.gates} - {"merge"})
    if others:
        raise ValueError(f"with fixed merges every image costs the same in a look: no other gates, got {others}")


if __name__ == "__main__":
    main()
