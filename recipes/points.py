"""What is best by the clock: python recipes/points.py --model DIR --data_files train=FILE validation=FILE --output_dir OUT

A plain ViT with --gates at several sizes of images and --budgets, without training, all timed in the same turns: which of
them is nearest to the dense model's predictions by multiply-accumulates, and which by the clock. All compute of the last
layer what the classifier reads. Points are chosen on images of train, whose labels are not read; what is chosen is timed
once more, and evaluated, on those of validation. Writes points.json and prints the table; `report.py --write
OUT/points.json` stores it. Leave the machine alone until the accuracy is asked for.
"""

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.data import ImageArguments
from hf_dynvit.measure import measured_on
from hf_dynvit.measure.dense import kernels_at_hand, of_its_weights, twin
from hf_dynvit.measure.files import check_new_folder
from hf_dynvit.measure.trained_models import open_models, shuffled
from hf_dynvit.model.budgets import check_budget
from hf_dynvit.objectives.gate_kinds import token_gates
from hf_dynvit.objectives.task_loss import check_classes
from hf_dynvit.report import write
from hf_dynvit.report.markdown import numbered, rows
from hf_dynvit.report.point_results import POINTS, Points, point_items
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.calibration import calibrate
from hf_dynvit.training.importance import fit_importance
from hf_dynvit.training.points import choices, clock_points, measured_points, places
from hf_dynvit.training.resolution import TOO_DEAR
from hf_dynvit.training.starting_model import read_gates


AT_ONCE = 64  # images of a forward, where nothing is timed
TIMED, LEAST_BATCHES = 32, 4  # images, and batches, that each batch size is timed on, where there are so many


@dataclass
class PointsArguments:
    """Which points, of which model."""

    model: str | None = field(default=None, metadata={"help": "a plain ViT: folder or Hub id"})
    output_dir: str | None = field(default=None, metadata={"help": "folder for points.json"})
    gates: str = field(default="merge", metadata={"help": "a preset with learned gates, or a list of gates as YAML"})
    budgets: list[float] = field(
        default_factory=lambda: [0.8, 0.65, 0.5, 0.4, 0.3], metadata={"help": "mean costs that gates are brought to"}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32], metadata={"help": "to time"})
    images: int = field(default=128, metadata={"help": "images of train to calibrate and to choose on"})
    rounds: int = field(default=10, metadata={"help": "timed rounds of all points"})
    kernels: bool = field(default=True, metadata={"help": "with compiled kernels, where a compiler is at hand"})
    seed: int = field(default=0, metadata={"help": "which images are used"})

    def __post_init__(self):
        if not self.model or not self.output_dir:
            raise ValueError(f"--model and --output_dir are needed, got {self.model!r} and {self.output_dir!r}")
        for budget in self.budgets:
            check_budget(budget)
        self.budgets, self.batch_sizes = sorted(set(self.budgets), reverse=True), sorted(set(self.batch_sizes))
        numbers = {"images": self.images, "rounds": self.rounds, "batch_sizes": min(self.batch_sizes, default=0)}
        wrong = {name: value for name, value in numbers.items() if value < 1}
        if wrong or not self.budgets:
            raise ValueError(f"numbers must be at least 1 and budgets some, got {wrong or self.budgets}")
        if max(self.batch_sizes) > self.images:
            raise ValueError(f"batch_sizes {self.batch_sizes} need as many images, got images {self.images}")
        check_new_folder(self.output_dir)


def main(argv=None):
    """Measure; returns the `Points` that it wrote."""
    args, data_args = parse_settings(sys.argv[1:] if argv is None else argv, PointsArguments, ImageArguments)
    if data_args.validation_split == data_args.train_split:
        raise ValueError(f"points are chosen on train: give another validation_split than {data_args.train_split!r}")
    (entrant,) = open_models([args.model], data_args, seed=args.seed)
    gates = check_plain(entrant, args)
    batches, tried = training_images(args, data_args), places(entrant.model.config, args.budgets)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    kernels = args.kernels and kernels_at_hand()
    found = measured_points(entrant.model, builder(entrant.vit, gates, batches, tried), tried, batches)
    points, models = [point for point, _ in found], dict(enumerate(model for _, model in found))
    budgets = reached(points, args.budgets)
    clock_points(points, models, timed_batches(torch.cat(batches), args.batch_sizes), rounds=args.rounds)
    chosen = choices(points, budgets, args.batch_sizes)
    results = Points(
        model=args.model,
        gates=args.gates,
        kernels=kernels,
        dataset=data_args.name(),
        split=data_args.validation_split,
        images=args.images,
        reported=len(entrant.images),
        dense=None,
        points=points,
        choices=chosen,
        **measured_on("cpu", "float32", args.seed),
    )
    mixed = shuffled(entrant, args.seed).images
    most = max(TIMED, LEAST_BATCHES * max(args.batch_sizes))
    given = torch.stack([mixed[index]["pixel_values"] for index in range(min(most, len(mixed)))])
    again = timed_batches(given, args.batch_sizes)
    clock_points(points, {place: models[place] for place in results.chosen()}, again, "ms_reported", args.rounds)
    file = Path(args.output_dir) / "points.json"
    write(file, results)  # what took an idle machine is there, whatever comes
    print("timed; the machine need not be idle any more")
    results.dense = accuracy(entrant.model, mixed)[0]
    for place in results.chosen():
        points[place].accuracy, points[place].cost_reported = accuracy(models[place], mixed)
    write(file, results)
    print("\n\n".join(numbered(rows(POINTS, point_items([results])))))
    return results


def check_plain(entrant, args):
    """The gates to put on a plain ViT; ValueError for another model, and for what cannot be measured of it."""
    config = entrant.model.config
    own = ("gates", "layer_mask", "resolution", "cascade", "last_layer")
    has = [name for name in own if getattr(config, name) is not None and getattr(config, name) != []]
    if has:
        raise ValueError(f"points are of a plain ViT, and {args.model} has {has}")
    check_classes(config)
    gates = read_gates(args.gates)
    if not DynViTForImageClassification.from_vit(entrant.vit, gates=gates).learned_gates():
        raise ValueError(f"points need gates that budgets can move, and {args.gates!r} learns nothing")
    if len(entrant.images) < max(args.batch_sizes):
        raise ValueError(f"batch_sizes {args.batch_sizes} need as many images, there are {len(entrant.images)}")
    return gates


def reached(points, budgets):
    """Those of the budgets that a point meets; ValueError for none."""
    least = min(point.cost for point in points)
    met = [budget for budget in budgets if least <= budget + TOO_DEAR]
    if not met:
        raise ValueError(f"no point costs as little as {budgets}: the cheapest has {least:.3f}")
    if len(met) < len(budgets):
        print(f"note: no point costs as little as {sorted(set(budgets) - set(met))}, the cheapest has {least:.3f}")
    return met


def training_images(args, data_args):
    """Batches of `pixel_values` of some images of train."""
    of_train = copy.copy(data_args)
    of_train.validation_split, of_train.max_eval_samples = data_args.train_split, None
    (entrant,) = open_models([args.model], of_train, labelled=False, seed=args.seed)
    images = shuffled(entrant, args.seed).images
    if len(images) < args.images:
        raise ValueError(f"there are {len(images)} images of train, and images {args.images} are asked for")
    loader = DataLoader(Subset(images, range(args.images)), AT_ONCE)
    return [batch["pixel_values"] for batch in loader]


def builder(vit, gates, batches, tried):
    """(size, budget) -> a model of the ViT's weights, prepacked where torch can, or None for a budget out of reach.

    At each size importance is learned once, and all budgets are calibrated together. Bodies share the weights of the ViT.
    """
    learned = {}
    left = tqdm(total=sum(map(len, tried.values())), desc="points")

    def build(size, budget):
        left.update()
        if budget is None:
            return of_its_weights(vit, resolution=size).eval()
        if size not in learned:
            model = learned[size] = of_its_weights(vit, resolution=size, gates=gates).eval()
            if token_gates(model):
                fit_importance(model, batches)
            calibrate(model, batches, budgets=[one for one in tried[size] if one is not None])
        table = learned[size].config.budget_shifts
        if budget not in [met for met, _ in table or []]:
            return None
        return twin(learned[size]).set_budget(budget)

    return build


def timed_batches(images, batch_sizes):
    """Batch size -> batches of so many, of the first images."""
    counts = {size: min(max(TIMED // size, LEAST_BATCHES), len(images) // size) for size in batch_sizes}
    return {size: [*images[: count * size].split(size)] for size, count in counts.items()}


@torch.no_grad()
def accuracy(model, images):
    """(top-1, mean cost) on images with labels."""
    right, cost = 0, 0.0
    for batch in tqdm(DataLoader(images, AT_ONCE), desc="accuracy", leave=False):
        outputs = model(batch["pixel_values"])
        right += (outputs.logits.argmax(-1) == batch["labels"]).sum().item()
        cost += outputs.cost.sum().item()
    return right / len(images), cost / len(images)


if __name__ == "__main__":
    main()
