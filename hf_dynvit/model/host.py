"""The contract of a host, the adapter that knows one backbone family of transformers by name, and the shelf of hosts.

Layouts, cost, conversion and prepacked weights ask the host alone. A backbone is pre-norm, with two residual branches per
layer: x + residual(attention(norm(x))), then x + residual(mlp(norm(x))). A new family is one file `host_NAME.py`, or a
class registered from outside the package with `register_host`.

Letters: B images, N tokens, D channels, H heads, d channels of a head, S numbers per token.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn


CLS = slice(0, 1)  # the protected token of a ViT


class LayerParts(NamedTuple):
    """The modules of one layer. Plain linear layers may be joined, split and prepacked; all else is called."""

    attention_norm: nn.Module
    mlp_norm: nn.Module
    attention: nn.Module  # the module that transformers' attention functions are given; it has a `config`
    projections: tuple  # linear layers whose outputs, side by side, are the queries, keys and values of all heads
    head_dim: int  # d; scores are scaled by d ** -0.5
    out: nn.Module  # the output projection
    mlp: nn.Module  # (T, D) -> (T, D), row by row
    mlp_linears: tuple  # its linear layers if it may run in parts, else none
    activation: Callable | None  # what stands between two of them
    residuals: tuple  # what attention and MLP pass before they are added: dropout, layer scale, drop path
    dropout: float  # of attention weights, 0.0 in evaluation
    eager: Callable  # transformers' eager attention function of this family
    turn: Callable | None = None  # (q, k, side) -> (q, k), (..., H, d) with side (..., S): rotary positions, q/k norms


class Sizes(NamedTuple):
    """What the cost is counted from; weights are multiply-accumulates of one token or patch in linear layers."""

    tokens: int  # N of an image of the configured size
    protected: int  # of them
    heads: int
    width: int  # D
    attention: int  # H * d
    attention_weights: int
    mlp_weights: int
    patch_weights: int  # of the embeddings
    features: int  # channels that the classifier reads
    key_value_weights: int = 0  # of `attention_weights`; needed of a host with `reads_protected`


class Host:
    """What all hosts have; an instance holds no state and serves all models of its family."""

    native: type  # transformers' image classifier, with the backbone under `base_model_prefix` and a `classifier`
    no_split: tuple = ()  # class names that device maps keep on one device
    protected: tuple = (0,)  # tokens that no gate drops or merges: [CLS], registers
    # Whether the classifier reads protected tokens alone: then they come first, `projections` are three, and there is no `turn`.
    reads_protected = False

    def protects_first(self):
        """Whether protected tokens come first, so that they stay in their places when others leave the stream."""
        return self.protected == tuple(range(len(self.protected)))

    def index(self):
        """The protected tokens as what indexes a tensor fastest: a slice where they come first."""
        return slice(0, len(self.protected)) if self.protects_first() else list(self.protected)

    def build(self, config):
        """The backbone with fresh weights, without a pooler."""
        raise NotImplementedError

    def layers(self, backbone):
        raise NotImplementedError

    def parts(self, layer):
        """The `LayerParts` of a layer, asked for in every forward, so that modules can be exchanged."""
        raise NotImplementedError

    def is_own(self, layer):
        """Whether nobody has hooks on the layer or its attention, or has put classes of their own in their places."""
        raise NotImplementedError

    def call(self, layer, x, side):
        """x (B, N, D) after the layer's own `forward`."""
        raise NotImplementedError

    def embed(self, backbone, pixel_values, interpolate):
        """Tokens (B, N, D), after a norm before the first layer, and what belongs to each: side (B, N, S) or None.

        Side data is gathered with the tokens wherever some are left out. `interpolate`: accept another image size.
        """
        raise NotImplementedError

    def norm(self, backbone, x):
        """The final norm of x (..., D)."""
        raise NotImplementedError

    def head(self, backbone, x, alive, size):
        """Features (B, F) for the classifier, from x (B, N, D) before the final norm.

        A mean leaves out tokens that are not alive (B, N) and weighs the others by their size (B, N); None: all, one.
        """
        raise NotImplementedError

    def sizes(self, config):
        """The `Sizes` of a configuration."""
        raise NotImplementedError


HOSTS = {}  # `model_type` of a native backbone -> host


def register_host(name, host):
    """Put an instance of a `Host` on the shelf, for configurations whose class attribute `host` is `name`."""
    HOSTS[name] = host


def host_of(config):
    """The host of a configuration (or its class), native or with gates.

    Raises:
        ValueError: none is registered for it.
    """
    name = getattr(config, "host", config.model_type)
    if name not in HOSTS:
        raise ValueError(f"no host for {name!r}; there are {sorted(HOSTS)}, and register_host takes others")
    return HOSTS[name]


def sizes_of(config):
    """The `Sizes` of a configuration, native or with gates."""
    return host_of(config).sizes(config)
