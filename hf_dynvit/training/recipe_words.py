"""What the words of a recipe and of the command line mean beside each other: defaults of presets, keys that do not count."""

import dataclasses
from itertools import zip_longest

from transformers import AutoConfig, TrainingArguments
from transformers.utils import logging

from .arguments import DynViTTrainingArguments
from .presets import FAITHFUL, preset_arguments, preset_of
from .starting_model import ModelArguments, naming


logger = logging.get_logger("hf_dynvit.recipes")


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


def keys_set_aside(file_words, argv):
    """Keys of a recipe file that do not count, given what the command line says."""
    return faithful_set_aside(file_words, argv) | budgets_set_aside(file_words, argv) | terms_set_aside(argv)


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
