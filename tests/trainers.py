"""Trainers of tiny models on seeded noise, for the tests, and what they trained to compare."""

import math

import torch

from hf_dynvit import DynViTForImageClassification, DynViTTrainer, DynViTTrainingArguments


GATES = [{"gate": "patch"}, {"gate": "head"}, {"gate": "sublayer"}]


class Images(torch.utils.data.Dataset):
    """Seeded noise whose label is the brightest third of the channels."""

    def __init__(self, count, seed=0, bad=None):
        self.pixels = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        self.labels = self.pixels.mean((2, 3)).argmax(1)
        if bad is not None:
            self.pixels[bad] = math.nan

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": int(self.labels[index])}


def build_trainer(tiny_vit, folder, gates=GATES, budget=0.5, count=64, teacher=None, dropout=0.0, bad=None, **options):
    torch.manual_seed(0)
    vit = tiny_vit(num_labels=3, hidden_dropout_prob=dropout)
    model = DynViTForImageClassification.from_vit(vit, gates=gates, budget=budget)
    options = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-3,
        "gate_learning_rate": 5e-2,
        "max_steps": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
        **options,
    }
    args = DynViTTrainingArguments(output_dir=str(folder), **options)
    return DynViTTrainer(
        model=model,
        args=args,
        teacher=teacher,
        train_dataset=Images(count, bad=bad),
        eval_dataset=Images(32, seed=1),
        calibration_dataset=Images(64, seed=2),
    )


def without_labels(trainer):
    """The trainer, in which labels teach nothing: what is left is the teacher."""
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch: 0 * outputs.logits.sum()
    trainer.task_loss.replaces = True
    return trainer


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
