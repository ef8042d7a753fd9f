"""Trained models side by side on real images: accuracy, mean cost, and images per second dense and packed."""

import math
import statistics
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import AutoImageProcessor, PreTrainedConfig, ViTConfig, ViTForImageClassification

from ..data.datasets import ImageDataset, load_validation
from ..model.configuration_dynvit import DynViTConfig
from ..model.modeling_dynvit import DynViTForImageClassification
from ..model.prepack import is_prepacked
from .dense import OURS, dense_calls, twin
from .files import check_weights
from .forwards import DTYPES, rounds_within, with_progress
from .memory import kept_mib, peak_mib
from .runtimes import Exported
from .timing import interleaved_seconds


TIMED_BATCHES, TIMED_IMAGES = 5, 32  # at least so many different ones, taken in turns by the rounds
EVAL_BATCH = 32
CALIBRATION_IMAGES = 64


class Entrant(NamedTuple):
    """A model to compare: its name, itself, the dense ViT of the same weights, its images, its image processor."""

    name: str
    model: DynViTForImageClassification
    vit: ViTForImageClassification
    images: ImageDataset
    processor: str


def open_models(paths, data_args, device="cpu", dtype=torch.float32):
    """Load models (folders or Hub ids of a DynViT or a ViT, which keeps everything) and the images for each.

    Args:
        data_args: `DataArguments`; the validation split is used.

    Raises:
        ValueError, OSError, FileNotFoundError: a model that is neither, or data that do not fit it.
    """
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        names = list(paths)
    entrants = []
    for name, path in zip(names, paths, strict=True):
        gated = PreTrainedConfig.get_config_dict(path)[0].get("model_type") == DynViTConfig.model_type
        check_weights(path)
        load = DynViTForImageClassification.from_pretrained if gated else DynViTForImageClassification.from_vit
        model = load(path, dtype=dtype).eval().to(device)
        processor = AutoImageProcessor.from_pretrained(path)
        images = load_validation(data_args, processor, model.config)
        entrants.append(Entrant(name, model, dense_vit(model), images, processor.to_json_string()))
    return entrants


def dense_vit(model):
    """The transformers ViT with the weights of `model`, shared, and without its gates."""
    known = set(ViTConfig().to_dict()) - {"model_type", "architectures"}
    fields = {name: value for name, value in model.config.to_dict().items() if name in known}
    with torch.device("meta"):
        vit = ViTForImageClassification(ViTConfig(**fields))
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("gates.")}
    vit.load_state_dict(weights, assign=True)
    return vit.eval()


def compare(
    paths,
    data_args,
    dtypes,
    batch_sizes,
    device,
    seconds,
    rounds=None,
    compiled=False,
    prepacked=False,
    runtimes=(),
):
    """Measure accuracy and cost once per dtype, speed per dtype and batch size, all models in turns in one run.

    Args:
        seconds: time for the rounds per model and batch size. rounds: their number instead.
        compiled: whether the compiled model is among the dense ones.
        prepacked: whether the packed models run with prepacked weights (on CPU).
        runtimes: of `benchmark_runtimes.RUNTIMES`, to time the dense models in as well.

    Yields:
        dict per model: `model`, `dtype`, `batch`, `images` (of the accuracy), `accuracy`, `cost`, `rounds`,
        `prepacked` (whether the packed model ran so), `timed_cost` (of the timed images), `dense_ms` (the ways of
        `dense_calls` -> milliseconds per batch), `other_ms` (the same of runtimes), `packed_ms`, `dense_images_per_s`
        (the fastest dense), `packed_images_per_s`, `speedup` (fastest dense / packed), `gates_speedup` (our model
        without gates / packed, what skipping itself is worth), `predicted` (1 / timed cost), `realised` (speedup *
        timed cost), `peak_mib` (of "dense", the least, `OURS` and "packed": MiB held at once during a forward and
        kept from the first one on, beyond weights and inputs), `prepacked_mib` (what of it is kept).
    """
    for dtype in dtypes:
        entrants = open_models(paths, data_args, device, DTYPES[dtype])
        if prepacked:
            for entrant in entrants:
                entrant.model.prepack()
        fewest = min(len(entrant.images) for entrant in entrants)
        if max(batch_sizes) > fewest:
            raise ValueError(f"a batch size of {max(batch_sizes)} needs as many images, there are {fewest}")
        scores = evaluate(entrants)
        entrants = [_shuffled(entrant) for entrant in entrants]
        exported = [Exported(one.vit, runtimes, first_images(one)) for one in entrants] if runtimes else None
        for batch in tqdm(batch_sizes, desc=f"timing {dtype}", unit="batch size"):
            torch.compiler.reset()
            timed = time_batches(entrants, batch, seconds, rounds, compiled, exported)
            for entrant, row in zip(entrants, timed, strict=True):
                yield {"model": entrant.name, "dtype": dtype, "batch": batch, **scores[entrant.name], **row}


def _shuffled(entrant, seed=0):
    """The entrant with its images in a random order: files are often sorted by class, and the first ones are timed."""
    order = torch.randperm(len(entrant.images), generator=torch.Generator().manual_seed(seed)).tolist()
    return entrant._replace(images=Subset(entrant.images, order))


@torch.inference_mode()
def evaluate(entrants):
    """Name -> `images`, `accuracy` (top-1) and mean `cost`; models with the same image processor share the loading."""
    hits = {entrant.name: [] for entrant in entrants}
    costs = {entrant.name: [] for entrant in entrants}
    for processor in dict.fromkeys(entrant.processor for entrant in entrants):
        group = [entrant for entrant in entrants if entrant.processor == processor]
        for batch in tqdm(DataLoader(group[0].images, EVAL_BATCH), desc="accuracy", unit="batch"):
            for entrant in group:
                out = entrant.model(batch["pixel_values"].to(entrant.model.device))
                hits[entrant.name].append(out.logits.argmax(-1).cpu() == batch["labels"])
                costs[entrant.name].append(out.cost.cpu())
    return {
        name: {
            "images": len(torch.cat(hits[name])),
            "accuracy": torch.cat(hits[name]).float().mean().item(),
            "cost": torch.cat(costs[name]).mean().item(),
        }
        for name in hits
    }


@torch.inference_mode()
def time_batches(entrants, batch, seconds, rounds, compiled, exported=None, different=None):
    """The timings of `compare` for one batch size, one dict per entrant.

    Args:
        exported: an `Exported` for each entrant, or None.
        different: batches of other images, taken in turns, None for `TIMED_BATCHES` or as many as hold `TIMED_IMAGES`:
            single images differ most in cost.
    """
    calls, beside, dense, timed_costs, kept = {}, {}, [], [], {}
    different = different or max(TIMED_BATCHES, math.ceil(TIMED_IMAGES / batch))
    period = min(different, *(len(entrant.images) // batch for entrant in entrants))
    for number, entrant in enumerate(entrants):
        dtype, device = entrant.model.dtype, entrant.model.device
        images = torch.stack([entrant.images[index]["pixel_values"] for index in range(period * batch)])
        batches = images.to(device, dtype).split(batch)
        models = dense_calls(entrant.vit, compiled)
        dense.append(list(models))
        models["packed"] = twin(entrant.model)  # which has kept nothing yet
        costs = []
        for name, model in models.items():
            calls[number, name] = lambda index, model=model, batches=batches: model(batches[index % period])

            def run_all(model=model, batches=batches, costs=costs if name == "packed" else []):
                """Every batch once: 16-bit products on CPU compile a kernel per number of rows."""
                costs += [getattr(model(part), "cost", None) for part in batches]

            kept[number, name] = kept_mib(run_all, device)
        found = exported[number].calls(batches) if exported else {}
        beside |= {(number, name): call for name, call in found.items()}
        timed_costs.append(torch.cat(costs).mean().item())
    peaks = {key: kept[key] + peak_mib(partial(call, 0), entrants[key[0]].model.device) for key, call in calls.items()}
    calls |= beside
    rounds = rounds or rounds_within(calls, seconds * len(entrants), warmup=len(beside) > 0)
    rounds = math.ceil(rounds / period) * period  # each batch is timed equally often
    took = interleaved_seconds(with_progress(calls, rounds, warmup=0), rounds, warmup=0)
    rows = []
    for number, cost in enumerate(timed_costs):
        ms = {name: 1e3 * _mean_of_medians(took[key, name], period) for key, name in calls if key == number}
        packed, dense_ms = ms["packed"], {name: ms[name] for name in dense[number]}
        fastest = min(dense_ms, key=dense_ms.get)
        leanest = min(dense_ms, key=lambda name, number=number: peaks[number, name])
        speedup = dense_ms[fastest] / packed
        memory = {"dense": leanest, OURS: OURS, "packed": "packed"}
        row = {
            "rounds": rounds,
            "prepacked": is_prepacked(entrants[number].model),
            "timed_cost": cost,
            "peak_mib": {name: peaks[number, key] for name, key in memory.items()},
            "prepacked_mib": {name: kept[number, key] for name, key in memory.items()},
            "dense_ms": dense_ms,
            "other_ms": {name: ms[name] for key, name in beside if key == number},
            "packed_ms": packed,
        }
        row |= {"dense_images_per_s": 1e3 * batch / dense_ms[fastest], "packed_images_per_s": 1e3 * batch / packed}
        row |= {"speedup": speedup, "gates_speedup": dense_ms[OURS] / packed}
        rows.append(row | {"predicted": 1 / cost, "realised": speedup * cost})
    return rows


def first_images(entrant):
    """A few images (C, ...) of the entrant, in float32 on CPU: what a runtime's quantisation is calibrated on."""
    count = min(CALIBRATION_IMAGES, len(entrant.images))
    return torch.stack([entrant.images[index]["pixel_values"] for index in range(count)])


def _mean_of_medians(seconds, period):
    """Mean over the batches, which differ in cost, of the median over the turns, which differ in luck."""
    return statistics.mean(statistics.median(seconds[start::period]) for start in range(period))
