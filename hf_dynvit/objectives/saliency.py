"""Saliency: how much the prediction for an image depends on each token that enters a layer (Simonyan et al., 2014).

Letters: B images, N tokens, D channels.
"""

import torch

from .task_loss import predicted_log_probability


LEAST = 1e-9  # gradient norm: one of exactly 0 has a logarithm too
SCALE = 2.0**12  # of the gradient, which may vanish in 16 bits


def log_saliency(model, pixel_values, layers, **how):
    """Log of the gradient norm of the tokens that enter layers, by the log-probability of what is predicted.

    The model runs once as it is (in training: with dropout), and backwards; gradients of its weights are neither needed nor
    touched. No labels are used.

    Args:
        model: a `DynViTForImageClassification`. pixel_values: (B, channels, height, width). layers: list of layers.
        how: further arguments of the forward.

    Returns:
        For each layer its tokens (B, N, D), with the graph, and float32 (B, N) without gradient.
    """
    with torch.enable_grad():
        given = pixel_values.detach().clone().requires_grad_()  # it carries the graph where the backbone is frozen
        outputs = model(given, output_hidden_states=layers, **how)
        entering = [outputs.hidden_states[layer] for layer in layers]
        predicted = SCALE * predicted_log_probability(outputs.logits, model.config).sum()
        gradients = torch.autograd.grad(predicted, entering)
    logs = [(gradient.float() / SCALE).norm(dim=-1).clamp(min=LEAST).log() for gradient in gradients]
    return list(zip(entering, logs, strict=True))
