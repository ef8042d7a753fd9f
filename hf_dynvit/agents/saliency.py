"""What the prediction for an image depends on, patch by patch: the saliency that a patch agent may learn from."""

import torch

from ..objectives.task_loss import predicted_log_probability


LEAST = 1e-9  # gradient norm: one of exactly 0 has a logarithm too
SCALE = 2.0**12  # of the gradient, which may vanish in 16 bits


def patch_saliency(model, pixel_values):
    """Log of the gradient norm of each patch that enters the first layer (Simonyan et al., 2014), centred within images.

    What is derived is the log-probability of what is predicted. The model runs once on all patches, as it is (in training:
    with dropout, and in the precision of the training), and backwards down to its first layer; gradients of its weights are
    neither needed nor touched.

    Args:
        model: a `DynViTForImageClassification`. pixel_values: (B, channels, height, width).

    Returns:
        float32 (B, n), of mean 0 for each image, without gradient.
    """
    with torch.enable_grad():
        given = pixel_values.detach().clone().requires_grad_()  # it carries the graph where the backbone is frozen
        outputs = model(given, output_hidden_states=[0])
        predicted = SCALE * predicted_log_probability(outputs.logits, model.config).sum()
        (gradient,) = torch.autograd.grad(predicted, outputs.hidden_states[0])
    log = (gradient[:, 1:].float() / SCALE).norm(dim=-1).clamp(min=LEAST).log()
    return log - log.mean(1, keepdim=True)
