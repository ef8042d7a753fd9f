"""Trainings of tiny models in several processes (gloo): `run_ranks` starts them, this file run as a script is one of them."""

import json
import os
import socket
import subprocess
import sys

from places import TESTS


def run_ranks(folder, ranks=2, resume=None, **options):
    """Train with the options of `trainers.build_trainer`; what each process reports, a list of dicts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "LOCAL_WORLD_SIZE": str(ranks)}
    words = [sys.executable, __file__, str(folder), json.dumps({"resume": resume, **options})]
    processes = [
        subprocess.Popen(
            words,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(text[-2500:] for text in said)
    return [json.loads(text.strip().splitlines()[-1]) for text in said]


def main(folder, options):
    import torch
    from conftest import build_tiny_vit
    from trainers import build_trainer

    options, random_gates = json.loads(options), []
    resume = options.pop("resume")
    trainer = build_trainer(build_tiny_vit, folder, **options)
    compute_loss = trainer.compute_loss

    def spy(model, inputs, **kwargs):
        loss, outputs = compute_loss(model, inputs, **{**kwargs, "return_outputs": True})
        random_gates.append([decision.sublayers.int().tolist() for decision in outputs.decisions])
        batches.append(inputs["pixel_values"].double().mean((1, 2, 3)).tolist())
        return loss

    batches, trainer.compute_loss = [], spy
    trainer.train(resume)
    trainer.compute_loss = compute_loss
    model = trainer.accelerator.unwrap_model(trainer.model)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "decisions": random_gates,
        "batches": batches,
        "logged": [{name: entry[name] for name in entry if name == "cost" or "usage" in name} for entry in logged],
        "prices": [entry.get("price") for entry in logged],
        "weights": [value.double().sum().item() for value in model.state_dict().values()],
        "cost": trainer.evaluate()["eval_cost"],
    }
    print(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
