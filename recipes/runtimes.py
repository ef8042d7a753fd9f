"""What gates gain in every runtime: python recipes/runtimes.py --models DIR --data_files train=FILE validation=FILE --output_dir OUT

For each model, and for --sizes of random weights with --gates at --budget: PyTorch, ONNX Runtime and OpenVINO, in float32, 16
and 8 bits, of the plain ViT, of the model with its gates open, and as it decides, all timed in turns on the same real images.
With --check_images also top-1 and agreement of each, of models that are trained. Writes NAME/runtimes.json for each model and prints the
table; `report.py --write OUT/*/runtimes.json` stores them. Nothing is trained; leave the machine alone meanwhile.
"""

import sys
import tempfile
from dataclasses import dataclass, field, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoImageProcessor, PreTrainedConfig, ViTImageProcessor

from hf_dynvit import DynViTConfig, DynViTForImageClassification
from hf_dynvit.data import ImageArguments, cropping, load_validation
from hf_dynvit.deploy import FORMATS
from hf_dynvit.deploy.side_by_side import score_ways, time_ways
from hf_dynvit.deploy.ways import PRECISIONS, Graphs, check_ways, states
from hf_dynvit.measure import measured_on
from hf_dynvit.measure.files import check_classifier, check_weights
from hf_dynvit.measure.forwards import SIZES, random_vit
from hf_dynvit.report import Runtimes, decides, write
from hf_dynvit.report.markdown import numbered, rows
from hf_dynvit.report.names import seen
from hf_dynvit.report.runtime_results import EVERYWHERE, runtime_items
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.calibration import calibrate
from hf_dynvit.training.fixed import check_fixable
from hf_dynvit.training.presets import gate_facts


PACKAGES = ("onnxruntime", "openvino", "nncf")
FILE = "runtimes.json"
AT_ONCE = 32  # images of a forward in calibration


@dataclass
class RuntimesArguments:
    """What to time, where and how."""

    output_dir: str | None = field(default=None, metadata={"help": "folder with a folder for each model"})
    models: list[str] = field(default_factory=list, metadata={"help": "models with gates: folders or Hub ids"})
    sizes: list[str] = field(
        default_factory=list, metadata={"help": f"also random weights, of {list(SIZES)}, for the times alone"}
    )
    gates: str = field(default="merge", metadata={"help": "preset of the random weights"})
    budget: float = field(default=0.5, metadata={"help": "mean cost of the random weights"})
    runtimes: list[str] = field(default_factory=lambda: list(PRECISIONS), metadata={"help": f"of {list(PRECISIONS)}"})
    precisions: list[str] = field(
        default_factory=lambda: ["float32", "bfloat16", "int8"],
        metadata={"help": f"number formats; each runtime has its own: {PRECISIONS}"},
    )
    fixed: list[str] | None = field(
        default=None,
        metadata={
            "help": f"of {list(FORMATS)}: where every image merges as much, so that all sizes are known ahead; by default "
            "openvino, where a model merges and does nothing else"
        },
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32])
    images: int = field(default=64, metadata={"help": "of train, for int8, fixed merges and random weights"})
    timed_images: int = field(default=32, metadata={"help": "of validation, at least the largest batch"})
    check_images: int = field(default=0, metadata={"help": "of validation, for top-1 and agreement; 0: none"})
    seconds: float = field(
        default=20.0,
        metadata={"help": "about what is timed of a model at a batch size, at least three times each batch"},
    )
    seed: int = field(default=0, metadata={"help": "which images are used"})

    def __post_init__(self):
        if not self.output_dir or not (self.models or self.sizes):
            raise ValueError(f"--output_dir and --models or --sizes are needed, got {self.output_dir!r}")
        for name, given, known in (("sizes", self.sizes, list(SIZES)), ("fixed", self.fixed or [], list(FORMATS))):
            wrong = [one for one in given if one not in known]
            if wrong:
                raise ValueError(f"{name} must be of {known}, got {wrong}")
        if not self.batch_sizes or not all(1 <= size <= self.timed_images for size in self.batch_sizes):
            raise ValueError(f"batch_sizes must be in 1..{self.timed_images}, timed_images, got {self.batch_sizes}")
        if self.images < 1 or self.check_images < 0:
            raise ValueError(
                f"images must be 1 or more, check_images 0 or more, got {self.images}, {self.check_images}"
            )
        names = [Path(name).name for name in (*self.models, *self.sizes)]
        twice = [name for name in names if names.count(name) > 1 or (Path(self.output_dir) / name / FILE).exists()]
        if twice:
            raise ValueError(f"{self.output_dir} would hold {twice} twice: give other names, or another folder")


class Entrant(NamedTuple):
    """A model, what prepares images for it, and whether its weights are random."""

    name: str
    model: DynViTForImageClassification
    processor: object
    random: bool


def main(argv=None):
    """Time everything; returns a `Runtimes` for each model."""
    args, data_args = parse_settings(sys.argv[1:] if argv is None else argv, RuntimesArguments, ImageArguments)
    pairs, found = check_ways(args.runtimes, args.precisions), []
    entrants = [*map(trained, args.models), *(random(size, args) for size in args.sizes)]
    fixed = [fixed_formats(entrant.model, args.fixed) for entrant in entrants]
    if "onnx" in (args.fixed or ()) and "int8 dynamic" in args.precisions:
        raise ValueError('fixed merges of onnx come with int8 that is calibrated: leave out "int8 dynamic"')
    for entrant, formats in zip(entrants, fixed, strict=True):
        place = Path(args.output_dir) / Path(entrant.name).name
        place.mkdir(parents=True, exist_ok=True)
        found.append(measured(entrant, formats, pairs, args, data_args))
        write(place / FILE, found[-1])
        print("\n\n".join(numbered(rows(EVERYWHERE, runtime_items(found[-1:])))))
    return found


def trained(path):
    """The `Entrant` of a folder or Hub id."""
    check_weights(path)
    fields = PreTrainedConfig.get_config_dict(path)[0]
    check_classifier(path, fields)
    gated = fields.get("model_type") == DynViTConfig.model_type
    load = DynViTForImageClassification.from_pretrained if gated else DynViTForImageClassification.from_vit
    model = load(path, dtype=torch.float32).eval()
    if not model.config.gates and not model.config.cascade:
        raise ValueError(f"{path} has neither gates nor a cascade: there is nothing to gain")
    return Entrant(path, model, AutoImageProcessor.from_pretrained(path), False)


def random(size, args):
    """The `Entrant` of a size, not yet brought to its budget."""
    torch.manual_seed(args.seed)
    vit = random_vit(size)
    model = DynViTForImageClassification.from_vit(vit, gates=args.gates, budget=args.budget).eval()
    if not model.learned_gates():
        raise ValueError(f"gates of random weights are brought to a budget by thresholds, {args.gates!r} has none")
    return Entrant(size, model, ViTImageProcessor(), True)


def fixed_formats(model, wanted):
    """The formats whose merges are fixed; ValueError for a model that does more than merge, if they were asked for."""
    if wanted is not None and not wanted:
        return []
    try:
        check_fixable(model)
    except ValueError:
        if wanted:
            raise
        return []
    return wanted or ["openvino"]


def measured(entrant, fixed, pairs, args, data_args):
    """The `Runtimes` of an entrant; random weights are brought to the budget on images of train."""
    model = entrant.model
    if entrant.random:
        data_args = replace(data_args, match_labels=False, trust_label_order=True)

    processor = cropping(entrant.processor, data_args.crop_pct)

    def pixels(split, count):
        images = load_validation(replace(data_args, validation_split=split), processor, model.config, args.seed)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[:count].tolist()
        items = [images[index] for index in order]
        return torch.stack([item["pixel_values"] for item in items]), torch.tensor([item["labels"] for item in items])

    train, _ = pixels(data_args.train_split, args.images)
    checked = 0 if entrant.random else args.check_images
    images, labels = pixels(data_args.validation_split, max(checked, args.timed_images))
    if len(images) < args.timed_images:
        raise ValueError(
            f"timed_images is {args.timed_images}, and {data_args.validation_split} has {len(images)} images"
        )
    if entrant.random:
        calibrate(model, list(train.split(AT_ONCE)), args.budget)
    with tempfile.TemporaryDirectory() as folder:
        graphs = Graphs(states(model), folder, pairs, max(args.batch_sizes) > 1, train, fixed)
        scores = score_ways(graphs, pairs, images[:checked], labels[:checked]) if checked else []
        timed = images[: args.timed_images]
        times = [one for size in args.batch_sizes for one in time_ways(graphs, pairs, timed, size, args.seconds)]
    where = measured_on("cpu", "float32", args.seed)
    where["versions"] |= {name: metadata.version(name) for name in PACKAGES if find_spec(name)}
    return Runtimes(
        model=entrant.name,
        decides=decides(gate_facts(model)) + seen(model.config),
        random=entrant.random,
        dataset=data_args.name(),
        images=len(timed),
        checked=len(images[:checked]),
        fixed=list(fixed),
        times=times,
        scores=scores,
        **where,
    )


if __name__ == "__main__":
    main()
