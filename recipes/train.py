"""Train a ViT to skip computation: accelerate launch recipes/train.py recipes/EXPERIMENT.yaml [--key value ...]

Loads a dense checkpoint, puts gates on it (or none: the dense baseline by the same recipe), trains, reports on the
validation split, and writes model, card, pictures and results.json to output_dir.
"""

import dataclasses
import sys
import time
from itertools import zip_longest
from pathlib import Path

from transformers import AutoConfig, TrainingArguments, set_seed
from transformers.utils import logging

from hf_dynvit.data import DataArguments, check_held_out, cropping, load_image_data
from hf_dynvit.measure.files import sign_weights
from hf_dynvit.report import describe, push, write
from hf_dynvit.report.cards import licence_of
from hf_dynvit.report.run_results import collect, given_results
from hf_dynvit.search import burn_in
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.arguments import DynViTTrainingArguments
from hf_dynvit.training.checkpoints import check_checkpoint, checkpoints, newest_complete, unusable
from hf_dynvit.training.presets import FAITHFUL, preset_arguments, preset_of
from hf_dynvit.training.starting_model import ModelArguments, load_base, load_model, load_teacher, naming
from hf_dynvit.training.trainer import DynViTTrainer


logger = logging.get_logger("hf_dynvit.recipes")


def main(argv=None):
    """Run one recipe; returns the content of results.json."""
    model_args, data_args, args = parse_settings(
        sys.argv[1:] if argv is None else argv,
        ModelArguments,
        DataArguments,
        DynViTTrainingArguments,
        defaults=preset_defaults,
        set_aside=lambda file, argv: (
            faithful_set_aside(file, argv) | budgets_set_aside(file, argv) | terms_set_aside(argv)
        ),
    )
    push_at_end, args.push_to_hub = args.push_to_hub, False  # once, at the end, with the card
    args.resume_from_checkpoint = find_checkpoint(args)
    if model_args.num_processes not in (None, args.world_size):
        raise ValueError(f"this recipe is for {model_args.num_processes} processes, {args.world_size} were launched")
    if args.dataloader_drop_last:
        raise ValueError("dataloader_drop_last would also drop images of the evaluation: leave it out")
    logging.set_verbosity(args.get_process_log_level())
    set_seed(args.seed)

    processor, base_config = load_base(model_args)
    processor = cropping(processor, data_args.crop_pct)
    with args.main_process_first(desc="loading the data"):
        data = load_image_data(data_args, processor, base_config, model_args.new_classifier, args.seed)
    model = load_model(model_args, base_config, data)
    if model.config.cascade is not None:
        check_held_out(data_args)
    trainer = DynViTTrainer(
        model=model,
        args=args,
        teacher=load_teacher(model_args, args, model.config),
        calibration_dataset=data.calibration,
        processing_class=processor,
        **data.for_trainer(),
    )
    logger.info(
        f"{len(data.train)} images to train on, {len(data.validation)} to report on, {args.world_size} processes"
    )

    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.perf_counter() - started
    trainer.save_model()  # with the processor
    kept = trainer.model.config
    plain = not (kept.gates or kept.layer_mask or kept.resolution or kept.cascade or kept.last_layer)
    if plain and trainer.is_world_process_zero():
        save_plain(trainer, Path(args.output_dir))
    metrics = trainer.evaluate(data.validation)
    trainer.log_metrics("eval", metrics)

    results = collect(model_args, data_args, trainer, data, metrics, seconds)
    if model_args.evaluate_dense and not model_args.new_classifier:
        kept = model_args.gate_list() == "keep"
        setattr(results, "checkpoint" if kept else "dense", given_results(model_args, args, data))
    if trainer.is_world_process_zero():
        folder, start = Path(args.output_dir), model_args.model_name_or_path
        write(folder / "results.json", results)
        of_start = licence_of(start) if start else {}
        describe(
            trainer.accelerator.unwrap_model(trainer.model),
            data.validation,
            results,
            folder,
            trainer.agent,
            plain=plain,
            model_id=args.hub_model_id,
            datasets=[data_args.dataset_name] if data_args.is_on_hub() else None,
            dataset_terms=model_args.dataset_terms,
            **({"license": model_args.license} if model_args.license else of_start),
        )
        if push_at_end:
            push(folder, args.hub_model_id, args.hub_private_repo)
    trainer.accelerator.wait_for_everyone()
    return results.to_json()


def preset_defaults(words):
    """How the preset that the words name (`--gates NAME`), or that made the gates that are kept, wants them taught."""
    preset = named_preset(words)
    taught, kept = preset_arguments(preset), last_value(words, "gates") == "keep"
    if kept or last_value(words, "start_mask"):  # nothing is led from open gates to the budget, nor is a mask undone
        taught |= {"budget_ramp": 0.0, "curriculum": 0.0, "harm_images": 0}
    if kept:  # nothing is learned anew
        taught |= {"importance_images": 0, "bypass_images": 0}
    return taught


def named_preset(words):
    """The preset that the words name, or that made the gates that are kept; whatever `gates` is where none did."""
    gates, path = last_value(words, "gates") or ModelArguments.gates, last_value(words, "model_name_or_path")
    if gates != "keep" or not path:
        return gates
    with naming("model_name_or_path", path):
        config = AutoConfig.from_pretrained(path)
    return preset_of(config) if config.model_type == "dynvit" else None


def faithful_set_aside(file_words, argv):
    """Keys of a recipe file that do not count: how its own gates are taught, where the command line names other ones.

    So it is where a preset shall do what its publication did, whichever the recipe; other presets take what the file
    says. What the command line says counts always.
    """
    gates = last_value(argv, "gates")
    if not gates or gates == last_value(file_words, "gates") or named_preset(file_words + argv) not in FAITHFUL:
        return set()
    given = {word.partition("=")[0].removeprefix("--") for word in file_words if word.startswith("--")}
    left = given & teaching_keys()
    if left:
        logger.warning(
            f"gates {gates!r} are taught as published: of the recipe file, {', '.join(sorted(left))} are left aside; what "
            "the command line says counts"
        )
    return left


def budgets_set_aside(file_words, argv):
    """The recipe's tuning budgets do not count where the command line asks for a cascade: its looks have their own."""
    left = {"tuning_budgets"} if last_value(argv, "cascade") and last_value(file_words, "tuning_budgets") else set()
    if left:
        logger.warning(
            "tuning_budgets of the recipe file are left aside: each look of a cascade has a budget of its own"
        )
    return left


def terms_set_aside(argv):
    """What the recipe says of the terms of its data does not count where the command line names other images."""
    others = any(last_value(argv, key) for key in ("data_files", "dataset_name", "data_dir"))
    return {"dataset_terms"} if others else set()


def teaching_keys():
    """The training arguments that say how gates are taught: all of ours but those of agents."""
    ours = {field.name for field in dataclasses.fields(DynViTTrainingArguments)}
    ours -= {field.name for field in dataclasses.fields(TrainingArguments)}
    ours |= DynViTTrainingArguments.flat_options().keys()
    return {name for name in ours if not name.startswith("agent") and name != "n_patch_desired"}


def last_value(words, key):
    """What the command line's words give for a key, the last time it stands there; "" if it does not."""
    pairs = zip_longest(words, words[1:], fillvalue="")  # the last word has none after it
    given = [
        after if word == f"--{key}" else word.partition("=")[2]
        for word, after in pairs
        if word.partition("=")[0] == f"--{key}"
    ]
    return given[-1] if given else ""


def find_checkpoint(args):
    """The checkpoint to resume from, None to start; refuses an output_dir that already holds a run, or what is not of one."""
    folder, resume = Path(args.output_dir), args.resume_from_checkpoint
    check_folder(folder)
    wanted = str(resume).lower()
    if wanted not in ("none", "false", "true"):
        if not Path(resume).is_dir():
            raise FileNotFoundError(f"there is no checkpoint to resume from: {resume}")
        check_checkpoint(resume, args)
        return resume
    found, passed_over = newest_complete(args) if wanted == "true" or checkpoints(folder) else (None, {})
    if wanted == "true" and found:
        return str(found)
    held = what_it_holds(folder, found, passed_over)
    if wanted == "true":
        raise FileNotFoundError(f"there is no checkpoint to resume from in {str(folder)!r}{held and f': it {held}'}")
    if held:
        raise ValueError(f"output_dir {str(folder)!r} {held}; or give another output_dir")
    return None


def check_folder(folder):
    """Refuse an output_dir that is a file, or whose files the model, its code and its card would replace."""
    if folder.is_file():
        raise ValueError(f"output_dir {str(folder)!r} is a file: give a folder")
    of_a_run = checkpoints(folder) or any((folder / name).exists() for name in ("results.json", "model.safetensors"))
    others = [] if of_a_run else sorted(file.name for file in [*folder.glob("*.py"), *folder.glob("README.md")])
    if others:
        raise ValueError(
            f"output_dir {str(folder)!r} holds {', '.join(others)}, and is the folder of no run: its code and card would take their "
            "place; give another output_dir"
        )


def what_it_holds(folder, checkpoint, passed_over):
    """What an output_dir holds of an earlier run, and how to go on with it; "" if nothing."""
    if checkpoint:
        return f"already holds a run ({checkpoint.name}): go on with --resume_from_checkpoint true"
    results, weights = folder / "results.json", folder / "model.safetensors"
    measure = f"measure it with recipes/evaluate.py --model {folder}"
    if results.exists() and weights.exists():
        return f"already holds a run (finished): {measure}"
    if weights.exists():
        return f"already holds a run (its model, without results.json, before which it was ended): {measure}"
    if results.exists():
        return f"already holds a run (its results.json, without a model: read {results})"
    if passed_over:
        wrong = ", ".join(f"{name}: {what}" for name, what in passed_over.items())
        usable = [name for name in passed_over if not unusable(folder / name)]
        how = (
            f"go on from its weights with --resume_from_checkpoint {folder / usable[0]}"
            if usable
            else "delete the folder"
        )
        return f"already holds a run without a complete checkpoint ({wrong}): {how}"
    return ""


def save_plain(trainer, folder):
    """The dense ViT as every transformers tool takes it, without this library's code."""
    for file in [*folder.glob("*.py"), folder / "config.json", folder / "model.safetensors"]:
        file.unlink()
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.layer_mask = [[True, True]] * model.config.num_hidden_layers
    burn_in(model).save_pretrained(folder)
    sign_weights(folder)
    model.config.layer_mask = None


if __name__ == "__main__":
    main()
