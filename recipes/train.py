"""Train a ViT to skip computation: accelerate launch recipes/train.py recipes/EXPERIMENT.yaml [--key value ...]

Loads a dense checkpoint, puts gates on it (or none: the dense baseline by the same recipe), trains, reports on the
validation split, and writes model, card, pictures and results.json to output_dir.
"""

import sys
import time
from pathlib import Path

from transformers import set_seed
from transformers.utils import logging

from hf_dynvit.data import DataArguments, check_held_out, cropping, load_image_data
from hf_dynvit.measure.files import sign_weights
from hf_dynvit.report import describe, push, write
from hf_dynvit.report.cards import licence_of
from hf_dynvit.report.run_results import collect, given_results
from hf_dynvit.search import burn_in
from hf_dynvit.settings import parse_settings
from hf_dynvit.training.arguments import DynViTTrainingArguments
from hf_dynvit.training.recipe_words import keys_set_aside, preset_defaults
from hf_dynvit.training.run_folder import find_checkpoint
from hf_dynvit.training.starting_model import ModelArguments, load_base, load_model, load_teacher
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
        set_aside=keys_set_aside,
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
