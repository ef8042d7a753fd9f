"""Search for what a model can do without: python recipes/search.py --model DIR --output DIR2 --data_files train=FILE ...

Masks over blocks or sub-layers, by NSGA-II or exhaustively, of a plain ViT or of a model with gates. Chooses on one half
of a held-out part of train, or of --search_split, and reports on the other. Milliseconds are those of a table of
latencies, measured on this device or given. Writes front.json, front.csv, front.png, scores.json and latency.json (with
which an interrupted search goes on where it was, by the same command) and the picked mask as a model in picked/.
"""

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoImageProcessor

from hf_dynvit import DynViTForImageClassification
from hf_dynvit.data import ImageArguments, cropping, load_validation
from hf_dynvit.measure.files import check_classifier, check_weights
from hf_dynvit.measure.forwards import DTYPES
from hf_dynvit.measure.provenance import measured_on
from hf_dynvit.model.bypass import bypass_of
from hf_dynvit.report import Search
from hf_dynvit.report.search_results import save_picked, write_front
from hf_dynvit.search import MaskScores, MaskSpace, pick, search
from hf_dynvit.search.arguments import NOT_OF_SCORES, SearchArguments, images_from, reward_of, split_of, training_of
from hf_dynvit.search.latencies import LATENCY_FILE, latencies_of, needs_latencies
from hf_dynvit.search.masks import fingerprint, model_fingerprint
from hf_dynvit.search.pareto import all_scored, chosen_method
from hf_dynvit.settings import parse_settings


def main(argv=None):
    """Search; returns the content of front.json."""
    args, data_args = parse_settings(sys.argv[1:] if argv is None else argv, SearchArguments, ImageArguments)
    if split_of(args, data_args) is None and not data_args.validation_fraction:
        raise ValueError(
            "give validation_fraction, the part of train that is held out: no mask is chosen on validation, unless "
            "--search_split names it, to be halved"
        )
    folder = Path(args.output)
    check_weights(args.model)
    config = AutoConfig.from_pretrained(args.model)
    gated = config.model_type == "dynvit"
    if gated and config.cascade is not None:
        raise ValueError(
            f"masks are searched for one look at an image, and {args.model} is a cascade of {config.cascade}"
        )
    if gated and config.layer_mask is not None:
        raise ValueError(
            f"{args.model} has a layer_mask already, which a search would not keep to: search the model that it was picked from"
        )
    if args.objectives.startswith("reward") and (args.policy != "act" or not (gated and config.gates)):
        raise ValueError(
            f"objectives {args.objectives!r} need a model with gates that act; {args.model} has none that do"
        )
    space = MaskSpace(config.num_hidden_layers, args.granularity, args.always_keep)
    load = DynViTForImageClassification.from_pretrained if gated else DynViTForImageClassification.from_vit
    check_classifier(args.model, config)
    model = load(args.model, dtype=torch.float32).eval().to(args.device)  # what --dtype says is autocast's
    check_burn_in(model, args)
    processor = cropping(AutoImageProcessor.from_pretrained(args.model), data_args.crop_pct)
    trained = training_of(args.model)
    reward = reward_of(args, trained if args.policy == "act" and gated and config.gates else None)
    timed = needs_latencies(args, reward)
    split, origin = images_from(args, data_args, trained)
    choose, report = halves(load_images(args, data_args, processor, model.config), args)
    latencies = latencies_of(model, args, choose) if timed else None
    identity = {
        **{name: value for name, value in asdict(args).items() if name not in NOT_OF_SCORES},
        "reward": reward._asdict() | {"source": None},  # the same values from elsewhere give the same scores
        "latency": asdict(latencies) if timed else False,
        "data": asdict(data_args),
        "weights": model_fingerprint(model),
        "pixels": fingerprint(*(tensor for batch in choose for tensor in batch)),
    }
    kept = {"file": folder / "scores.json", "identity": identity}
    scores = make_scores(model, space, choose, args, reward, latencies, **kept)
    if timed:
        folder.mkdir(parents=True, exist_ok=True)
        latencies.save(folder / LATENCY_FILE)
    start = [] if args.max_cost is None else [cheapest(scores, args.max_cost)]

    started = time.perf_counter()
    method = chosen_method(args.method, space)
    points = search(scores, args.objectives, method, args.population, args.generations, args.seed, start)
    seconds = time.perf_counter() - started
    fresh = make_scores(model, space, report, args, reward, latencies)
    bounded = args.min_accuracy is not None or args.max_cost is not None
    picked = pick(all_scored(scores) if bounded else points, args.objectives, args.min_accuracy, args.max_cost)
    for point in [*points, picked]:
        point["reported"] = fresh([bit == "1" for bit in point["bits"]])
    unmasked = fresh([True] * len(space))
    results = Search(
        model=args.model,
        objectives=args.objectives,
        method=method,
        space=f"{len(space)} bits, {args.granularity}",
        masks_scored=len(scores.cache),
        seconds=seconds,
        images_to_choose_on=sum(len(labels) for _, labels in choose),
        images_reported_on=sum(len(labels) for _, labels in report),
        dataset=data_args.name(),
        split=split,
        images_from=origin,
        reward=reward._asdict(),
        latencies=asdict(latencies) if timed else None,
        unmasked=unmasked,
        picked=picked,
        front=points,
        **measured_on(args.device, args.dtype, args.seed),
        settings=asdict(args),
    )
    content = write_front(results, folder)
    save_picked(model, processor, picked, folder, args.policy, args.burn_in)
    print(
        f"{len(points)} masks on the front, of {len(scores.cache)} scored in {seconds:.0f} s; picked {picked['bits']}: "
    )
    print(
        f"accuracy {picked['reported']['accuracy']:.4f} (unmasked {unmasked['accuracy']:.4f}) at cost "
        f"{picked['reported']['cost']:.3f} (unmasked {unmasked['cost']:.3f}), {picked['layers']:.0%} of layers left"
    )
    if timed:
        ms, dense = (scored["milliseconds"] for scored in (picked["reported"], unmasked))
        print(
            f"{ms:.3f} ms per image in batches of {latencies.batch_size} (unmasked {dense:.3f}), by the table of latencies"
        )
    print(f"chosen on {results.images_to_choose_on} images, reported on {results.images_reported_on}: {origin}")
    return content


def load_images(args, data_args, processor, config):
    """The `ImageDataset` that is halved: what is held out of train, or the whole split that the arguments name."""
    split = split_of(args, data_args) or data_args.train_split
    return load_validation(replace(data_args, validation_split=split), processor, config, args.seed)


def check_burn_in(model, args):
    """Refuse to burn in what no model without the layer could hold, before the search."""
    bypasses = [bypass for gates in model.gates for bypass in bypass_of(gates) if not bypass.adds_nothing()]
    kinds = sorted({bypass.kind for bypass in bypasses})
    fits = kinds == ["mean"] and args.policy == "process" and args.granularity == "block" and 0 in args.always_keep
    if args.burn_in and kinds and not fits:
        raise ValueError(
            f"burn_in leaves layers out, and bypasses {kinds} with them: only means can go into layers before them, of whole "
            "blocks with --policy process and layer 0 always kept. Without burn_in: picked/ does not compute masked layers "
            "either"
        )


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


def make_scores(model, space, batches, args, reward, latencies, **kept):
    """`MaskScores` as the arguments want them; `kept`: its file and identity."""
    return MaskScores(
        model,
        space,
        batches,
        reward=reward,
        latencies=latencies,
        dtype=None if args.dtype == "float32" else DTYPES[args.dtype],
        gating="threshold" if args.policy == "act" else "open",
        **kept,
    )


if __name__ == "__main__":
    main()
