"""Scorers of the gate `token`: how important each token is, one small class each; and the shelf of them.

Letters: B images, N tokens, D channels, F numbers per token.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .decisions import patches_there
from .host import CLS
from .novelty import novelty, novelty_macs
from .rows import directions, no_autocast


class Scorer(nn.Module):
    """Subclasses define `score`; higher is more important.

    A score depends on the tokens that are alive and on their order alone, so that it is the same in a stream without
    the others, unless the class says `reads_all`.

    Attributes:
        learns: whether training moves it: its numbers are read by the gate's linear score, and its parameters are taught.
        width: F, numbers per token that the linear score of the gate reads.
        protected: places of the tokens that are always kept, as the host says.
    """

    learns = False
    width = 1
    reads_all = False
    reads_attention = False  # `state.attention`, which the layer before must have noted
    reads_values = False  # and `state.values`
    protected = CLS

    def __init__(self, config):
        super().__init__()

    def score(self, tokens, state):
        """Normed tokens (B, N, D) and their `TokenState` -> (B, N), or (B, N, F) of one that learns from F numbers."""
        raise NotImplementedError

    def macs(self, tokens):
        """Multiply-accumulates of the matrix products for one image, of which so many tokens are there."""
        return 0


class RandomScorer(Scorer):
    """Another draw in every forward: the baseline to beat."""

    reads_all = True  # the next draw is another one if this one is shorter

    def score(self, tokens, state):
        return torch.rand(tokens.shape[:2], device=tokens.device)


class NormScorer(Scorer):
    """The length of the normed token."""

    def score(self, tokens, state):
        return torch.linalg.vector_norm(tokens.detach().float(), dim=-1)


class ContrastScorer(Scorer):
    """1 - the cosine of a token and the mean of all patch tokens of its image, in [0, 2]."""

    def __init__(self, config):
        super().__init__(config)
        self.channels = config.hidden_size

    def score(self, tokens, state):
        unit = directions(tokens)
        mean = patch_mean(tokens.detach().float(), state, self.protected)
        with no_autocast(tokens):
            return 1 - (unit @ directions(mean).to(unit.dtype).unsqueeze(-1)).squeeze(-1).float()

    def macs(self, tokens):
        return tokens * self.channels


class NoveltyScorer(ContrastScorer):
    """1 - the largest cosine of a token and the patches before it (novelty.py)."""

    def score(self, tokens, state):
        return novelty(tokens, state.alive, self.protected)

    def macs(self, tokens):
        return novelty_macs(tokens, self.channels)


class ClsAttentionScorer(Scorer):
    """How much [CLS] attends to the token in the layer before, mean over heads (EViT, Liang et al., 2022, section 3.2)."""

    reads_attention = True

    def score(self, tokens, state):
        return noted(state.attention, tokens)


class ClsAttentionValueScorer(ClsAttentionScorer):
    """The same times the length of the token's values, all heads side by side (ATS, Fayyaz et al., 2022, Eq. 5)."""

    reads_values = True

    def score(self, tokens, state):
        return noted(state.attention, tokens) * noted(state.values, tokens)


class LinearScorer(Scorer):
    """One linear map of the normed token."""

    learns = True

    def __init__(self, config):
        super().__init__(config)
        self.width = config.hidden_size

    def score(self, tokens, state):
        return tokens


class PredictorScorer(Scorer):
    """DynamicViT's predictor (Rao et al., 2021, section 3.2): half of what it reads is the mean over the image.

    What differs from the published code: 1. it reads the tokens after the layer's own norm; 2. protected tokens are
    left out of the mean, and those that have left, too; 3. one logit in place of the difference of two.
    """

    learns = True

    def __init__(self, config):
        super().__init__(config)
        channels = config.hidden_size
        self.half, self.width = channels // 2, channels // 4
        self.enter = nn.Linear(channels, 2 * self.half)
        self.mix = nn.Linear(2 * self.half, self.half)
        self.narrow = nn.Linear(self.half, self.width)

    def score(self, tokens, state):
        own, other = F.gelu(self.enter(tokens)).split(self.half, -1)
        mean = patch_mean(other, state, self.protected).unsqueeze(1).expand_as(own)
        return F.gelu(self.narrow(F.gelu(self.mix(torch.cat((own, mean), -1)))))

    def macs(self, tokens):
        return tokens * sum(linear.weight.numel() for linear in (self.enter, self.mix, self.narrow))


def patch_mean(tokens, state, protected):
    """Mean of the patch tokens that are alive, of tokens (B, N, D): (B, D); 0 where there are none."""
    there = patches_there(tokens, state, protected).unsqueeze(-1).to(tokens.dtype)
    return (tokens * there).sum(1) / there.sum(1).clamp(min=1)


def noted(values, tokens):
    """What the layers before have noted of each token (B, N); 1 where they know nothing of an image: all alike."""
    if values is None:
        return torch.ones(tokens.shape[:2], device=tokens.device)
    return torch.where(values.sum(1, keepdim=True) == 0, torch.ones_like(values), values)


SCORERS = {
    "random": RandomScorer,
    "norm": NormScorer,
    "contrast": ContrastScorer,
    "novelty": NoveltyScorer,
    "cls_attention": ClsAttentionScorer,
    "cls_attention_value": ClsAttentionValueScorer,
    "linear": LinearScorer,
    "predictor": PredictorScorer,
}


def register_scorer(name, kind):
    """Put a scorer of your own on the shelf, before models whose gates name it are built or loaded.

    Args:
        name: what the option `score` of a gate `token` calls it.
        kind: a `Scorer`, called with the configuration. Its code does not travel with a model.

    Raises:
        ValueError: what is not a class of scorers, or a name that another one has.
    """
    if not (isinstance(kind, type) and issubclass(kind, Scorer)):
        raise ValueError(f"scorer {name!r} must be a subclass of Scorer, got {kind!r}")
    if SCORERS.get(name, kind) is not kind:
        raise ValueError(f"there is a scorer {name!r} already: {SCORERS[name].__name__}")
    SCORERS[name] = kind
