"""Search for what a model can do without: python recipes/search.py --model DIR --output DIR2 --data_files train=FILE ...

Masks over blocks or sub-layers, by NSGA-II or exhaustively, of a plain ViT or of a model with gates. Chooses on one half
of a held-out part of train, reports on the other. Writes front.json, front.csv, front.png, scores.json (with which an
interrupted search goes on where it was, by the same command) and the picked mask as a model in picked/.
"""

import sys
import time
from dataclasses import asdict
from pathlib import Path


# This folder holds an evaluate.py, which must not hide the library of that name.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoImageProcessor

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.benchmark_speed import DTYPES
from hf_dynvit.data import load_image_data
from hf_dynvit.data_source import DataArguments
from hf_dynvit.environment import measured_on
from hf_dynvit.latency import layer_latencies
from hf_dynvit.search import exhaustive, nsga2, pick
from hf_dynvit.search_arguments import NOT_OF_SCORES, SearchArguments
from hf_dynvit.search_results import save_picked, write_front
from hf_dynvit.search_scores import MaskScores
from hf_dynvit.search_space import MaskSpace
from hf_dynvit.settings import parse_settings


def main(argv=None):
    """Search; returns the content of front.json."""
    args, data_args = parse_settings(sys.argv[1:] if argv is None else argv, SearchArguments, DataArguments)
    if not data_args.validation_fraction:
        raise ValueError(
            "give validation_fraction, the part of train that is held out: no mask is chosen on validation"
        )
    folder = Path(args.output)
    config = AutoConfig.from_pretrained(args.model)
    gated = config.model_type == "dynvit"
    if args.objectives.startswith("reward") and (args.policy != "act" or not (gated and config.gates)):
        raise ValueError(
            f"objectives {args.objectives!r} need a model with gates that act; {args.model} has none that do"
        )
    space = MaskSpace(config.num_hidden_layers, args.granularity, args.always_keep)
    load = DynViTForImageClassification.from_pretrained if gated else DynViTForImageClassification.from_vit
    model = load(args.model).eval().to(args.device)
    processor = AutoImageProcessor.from_pretrained(args.model)
    data = load_image_data(data_args, processor, model.config, seed=args.seed)
    choose, report = halves(data.selection, args)
    scores = make_scores(model, space, choose, args, file=folder / "scores.json")
    start = [] if args.max_cost is None else [cheapest(scores, args.max_cost)]

    started = time.perf_counter()
    small = len(space) <= 6 if args.method == "auto" else args.method == "exhaustive"
    if small:
        points = exhaustive(scores, args.objectives)
    else:
        points = nsga2(scores, args.objectives, args.population, args.generations, args.seed, start)
    seconds = time.perf_counter() - started
    fresh = make_scores(model, space, report, args)
    for point in points:
        point["reported"] = fresh([bit == "1" for bit in point["bits"]])
    picked = pick(points, args.objectives, args.min_accuracy, args.max_cost)
    unmasked = fresh([True] * len(space))
    results = {
        "kind": "search",
        "model": args.model,
        "objectives": args.objectives,
        "method": "exhaustive" if small else "nsga2",
        "space": f"{len(space)} bits, {args.granularity}",
        "masks_scored": len(scores.cache),
        "seconds": seconds,
        "images_to_choose_on": sum(len(labels) for _, labels in choose),
        "images_reported_on": sum(len(labels) for _, labels in report),
        "dataset": data_args.name(),
        "split": f"held out of {data_args.train_split}",
        "unmasked": unmasked,
        "picked": picked,
        "front": points,
        **measured_on(args.device, args.dtype, args.seed),
        "settings": asdict(args),
    }
    write_front(results, folder)
    save_picked(model, processor, picked, folder, args.policy, args.burn_in)
    print(
        f"{len(points)} masks on the front, of {len(scores.cache)} scored in {seconds:.0f} s; picked {picked['bits']}: "
    )
    print(
        f"accuracy {picked['reported']['accuracy']:.4f} (unmasked {unmasked['accuracy']:.4f}) at cost "
        f"{picked['reported']['cost']:.3f} (unmasked {unmasked['cost']:.3f}), {picked['layers']:.0%} of layers left"
    )
    return results


def halves(images, args):
    """Two lists of batches of (pixel_values, labels), on the device: to choose on, to report on."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[: args.images].tolist()
    if len(order) < 2:
        raise ValueError(f"{len(order)} held-out images cannot be halved: raise validation_fraction or images")
    batches = []
    for part in (order[: len(order) // 2], order[len(order) // 2 :]):
        loader = DataLoader(torch.utils.data.Subset(images, part), args.batch_size)
        batches.append([(b["pixel_values"].to(args.device), b["labels"].to(args.device)) for b in loader])
    return batches


def cheapest(scores, max_cost):
    """The cheapest of the smallest masks, for the search to begin with, so that it ends with one that is cheap enough.

    Raises:
        ValueError: even that mask costs more than `max_cost`.
    """
    bits = min(scores.space.smallest(), key=lambda bits: scores(bits)["cost"])
    if scores(bits)["cost"] > max_cost:
        raise ValueError(f"no mask has a cost of at most {max_cost}; the cheapest has {scores(bits)['cost']:.4f}")
    return bits


def make_scores(model, space, batches, args, file=None):
    """`MaskScores` as the arguments want them."""
    latencies = layer_latencies(model, batches[0][0]) if args.objectives == "error+latency" else None
    identity = {name: value for name, value in asdict(args).items() if name not in NOT_OF_SCORES}
    return MaskScores(
        model,
        space,
        batches,
        price=args.price,
        latencies=latencies,
        file=file,
        identity=identity | {"latency": latencies is not None},
        autocast=None if args.dtype == "float32" else DTYPES[args.dtype],
        gating="threshold" if args.policy == "act" else "open",
    )


if __name__ == "__main__":
    main()
