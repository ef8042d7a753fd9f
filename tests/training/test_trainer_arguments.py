"""Every argument of the ordinary Trainer: honoured as it honours it, or refused by name; a new one fails here."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from trainers import GATES, Images, assert_same, build_trainer, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_dynvit import DynViTForImageClassification, DynViTTrainer, DynViTTrainingArguments
from hf_dynvit.model.gate import LearnedGate
from hf_dynvit.training import checks


# Each does here what it does in the Trainer. What that means for gates, where it says more than that:
HONOURED = {
    "output_dir",
    "per_device_train_batch_size",
    "num_train_epochs",
    "max_steps",
    "learning_rate",  # of the body; gates have gate_learning_rate
    "lr_scheduler_type",  # of gates too: the same curve
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim_args",
    "weight_decay",  # of the body; gates have gate_weight_decay
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim_target_modules",  # read by optimisers that are refused with gates
    "gradient_accumulation_steps",
    "average_tokens_across_devices",
    "max_grad_norm",  # of body and gates together
    "label_smoothing_factor",  # of the prediction's loss
    "bf16",
    "fp16",
    "bf16_full_eval",
    "fp16_full_eval",
    "tf32",
    "activation_checkpointing",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",  # copied to activation_checkpointing_kwargs
    "torch_compile_backend",  # with torch_compile
    "torch_compile_mode",
    "liger_kernel_config",  # with use_liger_kernel
    "use_cache",
    "torch_empty_cache_steps",
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "log_on_each_node",
    "logging_nan_inf_filter",  # nothing to filter: a loss that is not finite stops training
    "include_num_input_tokens_seen",
    "log_level",
    "log_level_replica",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "per_device_eval_batch_size",
    "prediction_loss_only",
    "eval_on_start",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "eval_accumulation_steps",
    "include_for_metrics",
    "batch_eval_metrics",  # the Trainer itself refuses it without a compute_metrics made for it
    "save_only_model",
    "save_steps",
    "save_on_each_node",
    "save_total_limit",
    "enable_jit_checkpoint",
    "push_to_hub",
    "hub_token",
    "hub_private_repo",
    "hub_model_id",
    "hub_strategy",
    "hub_always_push",
    "hub_revision",
    "metric_for_best_model",
    "greater_is_better",
    "ignore_data_skip",
    "restore_callback_states_from_checkpoint",
    "full_determinism",
    "seed",
    "data_seed",
    "use_cpu",
    "accelerator_config",
    "dataloader_drop_last",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
    "remove_unused_columns",
    "length_column_name",  # with train_sampling_strategy "group_by_length"
    "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers",
    "ddp_static_graph",
    "ddp_backend",
    "ddp_timeout",
    "debug",
    "skip_memory_metrics",
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "local_rank",
}
REFUSED = {  # value that is refused, gates there, what is said
    "use_liger_kernel": (True, None, "use_liger_kernel is for language models"),
    "neftune_noise_alpha": (5.0, None, "neftune_noise_alpha adds noise to the embeddings of text"),
    "train_sampling_strategy": ("group_by_length", None, "train_sampling_strategy 'group_by_length' is for text"),
    "label_names": (["classes"], None, r"label_names must be \['labels'\]"),
    "activation_checkpointing_kwargs": ({"use_reentrant": True}, None, "use_reentrant=True would lose the gradients"),
    "torch_compile": (True, GATES, "torch_compile cannot be given with gates"),
    "auto_find_batch_size": (True, GATES, "auto_find_batch_size cannot be given with gates"),
    "optim": ("lomo", GATES, "optim 'lomo' groups the parameters itself"),
}
COMPARED_AT_ONE_COST = {"load_best_model_at_end", "save_strategy"}  # test_best_model.py
SEVERAL_PROCESSES = {"fsdp", "fsdp_config", "deepspeed", "parallelism_config"}  # the tests of those

TRAINER_HONOURED = {
    "self",
    "model",
    "args",
    "data_collator",
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "compute_loss_func",
    "compute_metrics",
    "callbacks",
    "optimizers",
    "optimizer_cls_and_kwargs",
    "preprocess_logits_for_metrics",
}
TRAINER_REFUSED = {"model_init"}


def test_every_training_argument_of_transformers_is_on_one_list():
    lists = [HONOURED, set(REFUSED), COMPARED_AT_ONE_COST, SEVERAL_PROCESSES]
    assert sum(map(len, lists)) == len(set().union(*lists))
    assert {field.name for field in dataclasses.fields(TrainingArguments)} == set().union(*lists)


def test_every_argument_of_the_trainer_is_on_one_list():
    assert set(inspect.signature(Trainer.__init__).parameters) == TRAINER_HONOURED | TRAINER_REFUSED


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_do_what_it_says_is_refused_by_name(tiny_vit, tmp_path, name):
    value, gates, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        build_trainer(tiny_vit, tmp_path, gates=gates, **{name: value})


def test_a_model_that_training_would_replace_is_refused(tiny_vit, tmp_path):
    args = DynViTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="model_init makes the model anew"):
        DynViTTrainer(args=args, model_init=lambda: DynViTForImageClassification.from_vit(tiny_vit()))
    plain = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="args must be DynViTTrainingArguments, got TrainingArguments"):
        DynViTTrainer(DynViTForImageClassification.from_vit(tiny_vit()), plain)


class Losses(TrainerCallback):
    """The losses that a training logs."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs[name] for name in ("loss", "eval_loss") if name in logs]


def both(tiny_vit, folder, given=None, gates=None, **options):
    """(losses, weights) of the stock Trainer and of ours on the same model, which has no gates unless given."""
    options = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 4,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    ends = []
    for kind, arguments in ((Trainer, TrainingArguments), (DynViTTrainer, DynViTTrainingArguments)):
        torch.manual_seed(0)
        model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=gates)
        args, losses = arguments(str(folder / kind.__name__), **options), Losses()
        data = {"train_dataset": Images(36), "eval_dataset": Images(12, seed=1), "callbacks": [losses]}
        kind(model=model, args=args, **data, **(given or {})).train()
        ends.append((losses.values, weights(model)))
    return ends


def summed_cross_entropy(outputs, labels, num_items_in_batch=None):
    total = F.cross_entropy(outputs.logits, labels, reduction="sum")
    return 2 * total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {}),
        ({}, {"label_smoothing_factor": 0.5}),
        ({}, {"label_smoothing_factor": 0.5, "gradient_accumulation_steps": 3}),
        ({"compute_loss_func": summed_cross_entropy}, {}),
        ({"compute_loss_func": summed_cross_entropy}, {"gradient_accumulation_steps": 3}),
        ({"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})}, {}),
        ({}, {"optim": "adafactor"}),
        ({}, {"optim": "adagrad", "lr_scheduler_type": "cosine", "warmup_steps": 2}),
        ({}, {"activation_checkpointing": True}),
        ({}, {"max_grad_norm": 0.01}),
        ({}, {"dataloader_drop_last": True, "max_steps": 5}),
        ({}, {"include_num_input_tokens_seen": "all"}),
        ({}, {"bf16": True, "max_steps": 2, "eval_steps": 2}),
    ],
    ids=lambda options: ", ".join(options) or "none",
)
def test_without_gates_losses_and_weights_are_the_stock_trainers(tiny_vit, tmp_path, given, options):
    (losses, stock), (own, ours) = both(tiny_vit, tmp_path, given, **options)
    assert own == losses and len(losses) > 2
    assert_same(stock, ours)


@pytest.mark.parametrize("smoothing", [0.5, 0.0])
def test_with_gates_the_loss_of_the_prediction_is_the_stock_trainers(tiny_vit, tmp_path, smoothing):
    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=GATES)
    given = {} if smoothing else {"compute_loss_func": summed_cross_entropy}
    options = {"use_cpu": True, "report_to": "none", "label_smoothing_factor": smoothing, "cost_weight": 0.0}
    trainer = DynViTTrainer(model, DynViTTrainingArguments(str(tmp_path), **options), **given)
    del options["cost_weight"]
    stock = Trainer(model, TrainingArguments(str(tmp_path), **options), **given)
    batch = {"pixel_values": Images(8).pixels, "labels": Images(8).labels}
    losses = []
    for module in (stock, trainer):
        for mode in (True, False):
            torch.manual_seed(0)
            module.model.train(mode)
            losses.append(module.compute_loss(model, dict(batch)).item())
    assert losses[:2] == losses[2:]
    assert model(**batch).loss.item() != pytest.approx(losses[1], abs=1e-3)


def test_losses_of_gates_are_averaged_over_what_is_accumulated_beside_a_loss_of_ones_own(tiny_vit, tmp_path):
    ends, teacher = [], tiny_vit(num_labels=3)
    for size, steps in ((16, 1), (4, 4)):
        trainer = build_trainer(
            tiny_vit,
            tmp_path / str(size),
            count=16,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            max_grad_norm=0.0,
            optim="sgd",
            cost_weight=0.0,
            teacher=teacher,
            freeze_gates_at=0.0,  # nothing is drawn
            calibration_images=0,
        )
        trainer.compute_loss_func, trainer.task_loss.replaces = summed_cross_entropy, True
        trainer.train()
        ends.append(weights(trainer.model))
    for name, one in ends[0].items():
        torch.testing.assert_close(ends[1][name], one, atol=1e-6, rtol=1e-4, msg=name)


def test_an_optimizer_of_ones_own_gets_the_groups_of_gates(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path)
    trainer.optimizer_cls_and_kwargs = torch.optim.SGD, {"lr": 0.3, "momentum": 0.9}
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD and optimizer.param_groups[0]["momentum"] == 0.9
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3, 5e-2]


def test_optimizers_that_are_given_are_used(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=GATES)
    optimizer = torch.optim.SGD(model.gates.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    args = DynViTTrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True
    )
    before = weights(model.vit)
    trainer = DynViTTrainer(model, args, train_dataset=Images(16), optimizers=(optimizer, scheduler))
    trainer.train()
    assert_same(before, weights(model.vit))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


def test_gates_follow_the_learning_rate_schedule_from_their_own_rate(tiny_vit, tmp_path):
    trainer = build_trainer(tiny_vit, tmp_path, lr_scheduler_type="cosine", max_steps=4, logging_steps=1)
    rates = []
    trainer.add_callback(
        type(
            "Rates",
            (TrainerCallback,),
            {"on_step_end": lambda self, *_, **__: rates.append([g["lr"] for g in trainer.optimizer.param_groups])},
        )
    )
    trainer.train()
    assert len(rates) == 4 and rates[1][0] < rates[0][0]
    assert all(gates == pytest.approx(50 * body) for body, *_, gates in rates)


@pytest.mark.parametrize(("rate", "decay"), [(None, None), (0.02, 0.3), (None, 0.0)])
def test_gates_take_the_rate_and_decay_of_the_body_or_their_own(tiny_vit, tmp_path, rate, decay):
    trainer = build_trainer(tiny_vit, tmp_path, gate_learning_rate=rate, gate_weight_decay=decay, weight_decay=0.1)
    found = {}
    for group in trainer.create_optimizer().param_groups:
        found |= {id(parameter): (group["lr"], group["weight_decay"]) for parameter in group["params"]}
    gates = [gate for gate in trainer.model.modules() if isinstance(gate, LearnedGate)]
    wanted = 1e-3 if rate is None else rate
    for gate in gates:
        assert found[id(gate.score.weight)] == (wanted, 0.1 if decay is None else decay)
        assert found[id(gate.score.bias)] == (wanted, 0.0)


def test_predictions_for_metrics_are_logits_and_cost(tiny_vit, tmp_path):
    seen = []

    def preprocess(predictions, labels):
        logits, cost = predictions
        seen.append((logits.shape, cost.shape, labels.shape))
        return logits.argmax(-1), cost

    def metrics(prediction):
        classes, cost = prediction.predictions
        assert prediction.inputs is not None and prediction.losses is not None
        return {"right": float(np.mean(classes == prediction.label_ids)), "cost": float(cost.mean())}

    args = DynViTTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        include_for_metrics=["inputs", "loss"],
        eval_accumulation_steps=1,
    )
    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates=GATES)
    trainer = DynViTTrainer(
        model, args, eval_dataset=Images(8), compute_metrics=metrics, preprocess_logits_for_metrics=preprocess
    )
    assert {"eval_right", "eval_cost", "eval_loss"} <= trainer.evaluate().keys()
    assert seen == [((8, 3), (8,), (8,))]


def test_batches_that_are_not_joined_give_the_same_metrics(tiny_vit, tmp_path):
    joined, apart = (
        build_trainer(tiny_vit, tmp_path, eval_do_concat_batches=concat, per_device_eval_batch_size=12).evaluate()
        for concat in (True, False)
    )
    for name in ("eval_accuracy", "eval_accuracy_top5", "eval_cost"):
        assert apart[name] == pytest.approx(joined[name])


@pytest.mark.parametrize(
    "options",
    [{"bf16_full_eval": True}, {"prediction_loss_only": True}],
    ids=lambda options: ", ".join(options) or "none",
)
def test_evaluation_in_16_bit_or_of_the_loss_alone(tiny_vit, tmp_path, options):
    trainer = build_trainer(tiny_vit, tmp_path, max_steps=1, **options)
    trainer.train()
    metrics = trainer.evaluate()
    assert np.isfinite(metrics["eval_loss"]) and ("eval_cost" in metrics) is ("bf16_full_eval" in options)


def test_callback_states_are_restored_from_a_checkpoint(tiny_vit, tmp_path):
    options = {"freeze_gates_at": 0.25, "save_strategy": "steps", "save_steps": 4, "max_steps": 6}
    straight = build_trainer(tiny_vit, tmp_path, **options)
    straight.train()
    resumed = build_trainer(tiny_vit, tmp_path, restore_callback_states_from_checkpoint=True, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same(weights(straight.model), weights(resumed.model))


def test_adapters_that_would_be_saved_without_the_gates_are_refused(tiny_vit, tmp_path):
    model = DynViTForImageClassification.from_vit(tiny_vit(num_labels=3), gates="merge")
    model._hf_peft_config_loaded = True  # as `add_adapter` leaves it
    with pytest.raises(ValueError, match="merge the adapters into the checkpoint, and put gates on that"):
        DynViTTrainer(model, DynViTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))


def test_weights_of_16_bits_that_learn_are_said(tiny_vit, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(checks.logger, "warning", said.append)
    trainer = build_trainer(tiny_vit, tmp_path, max_steps=1)
    trainer.train()
    assert not any("learn" in one for one in said)
    checks.warn_of_16_bits(trainer.model.half())
    assert "weights of torch.float16 learn" in said[-1] and "dtype=torch.float32" in said[-1]
    for weight in trainer.model.parameters():
        weight.requires_grad_(False)
    said.clear()
    checks.warn_of_16_bits(trainer.model)
    assert not said


def test_an_optimiser_that_evaluates_other_weights_is_refused_beside_gates(tiny_vit, tmp_path):
    with pytest.raises(ValueError, match="optim 'schedule_free_adamw' evaluates other weights than it trains"):
        build_trainer(tiny_vit, tmp_path, optim="schedule_free_adamw")
    build_trainer(tiny_vit, tmp_path, optim="schedule_free_adamw", gates=None)


def test_images_to_calibrate_on_lose_the_columns_that_the_trainer_takes_away(tiny_vit, tmp_path):
    class Named(Images):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"name": f"image {index}"}  # no collator makes a tensor of it

    trainer = build_trainer(tiny_vit, tmp_path, calibration_images=8, max_steps=1)
    trainer.train_dataset = trainer.calibration_dataset = Named(16)
    trainer.train()
    assert [entry for entry in trainer.state.log_history if "calibration_cost" in entry]
