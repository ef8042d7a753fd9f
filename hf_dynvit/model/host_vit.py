"""The host of transformers' ViT: all that this package knows of its names and sizes.

Letters: B images, N tokens ([CLS] first), D channels.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ViTForImageClassification, ViTModel
from transformers.models.vit import modeling_vit as vit

from .configuration_dynvit import pair
from .host import Host, LayerParts, Sizes, register_host
from .prepack import is_plain


class ViTHost(Host):
    native = ViTForImageClassification
    reads_protected = True
    no_split = ("ViTEmbeddings", "ViTLayer")

    def build(self, config):
        return ViTModel(config, add_pooling_layer=False)

    def layers(self, backbone):
        return backbone.layers

    def parts(self, layer):
        attention, mlp, dropout = layer.attention, layer.mlp, layer.dropout
        first, second, activation = (mlp.fc1, mlp.fc2, mlp.activation_fn) if is_plain(mlp, vit.ViTMLP) else (None,) * 3
        return LayerParts(
            layer.layernorm_before,
            layer.layernorm_after,
            attention,
            (attention.q_proj, attention.k_proj, attention.v_proj),
            attention.head_dim,
            attention.o_proj,
            mlp,
            () if first is None else (first, second),
            activation,
            (dropout, dropout),
            attention.attention_dropout if attention.training else 0.0,
            vit.eager_attention_forward,
        )

    def is_own(self, layer):
        return is_plain(layer, vit.ViTLayer) and is_plain(layer.attention, vit.ViTAttention)

    def call(self, layer, x, side):
        return nn.Module.__call__(layer, x)  # not through its own checkpointing, which would be a second one

    def embed(self, backbone, pixel_values, interpolate):
        embeddings = backbone.embeddings
        patch_embeddings = embeddings.patch_embeddings
        pixel_values = pixel_values.to(patch_embeddings.projection.weight.dtype)
        faster = _is_faster_as_product(patch_embeddings, pixel_values, interpolate)
        if not (is_plain(embeddings, vit.ViTEmbeddings) and faster):
            return embeddings(pixel_values, interpolate_pos_encoding=interpolate), None
        tokens = patch_tokens(patch_embeddings, pixel_values, interpolate)
        tokens = torch.cat((embeddings.cls_token.expand(len(tokens), -1, -1), tokens), 1)
        positions = embeddings.position_embeddings
        if interpolate:
            positions = embeddings.interpolate_pos_encoding(tokens, *pixel_values.shape[2:])
        return embeddings.dropout(tokens.add_(positions)), None

    def norm(self, backbone, x):
        return backbone.layernorm(x)

    def head(self, backbone, x, alive, size):
        return backbone.layernorm(x[:, 0])

    def sizes(self, config):
        (height, width), (patch_height, patch_width) = pair(config.image_size), pair(config.patch_size)
        heads, channels = config.num_attention_heads, config.hidden_size
        attention = heads * getattr(config, "head_dim", channels // heads)
        return Sizes(
            tokens=(height // patch_height) * (width // patch_width) + 1,
            protected=1,
            heads=heads,
            width=channels,
            attention=attention,
            attention_weights=4 * channels * attention,
            key_value_weights=2 * channels * attention,
            mlp_weights=2 * channels * config.intermediate_size,
            patch_weights=patch_height * patch_width * config.num_channels * channels,
            features=channels,
        )


def patch_tokens(patch_embeddings, pixel_values, interpolate=False):
    """`ViTPatchEmbeddings` of pixel_values (B, channels, height, width) -> (B, N - 1, D).

    In 16 bit on CPU by one matrix product, which is faster than the convolution that it equals.
    """
    if not _is_faster_as_product(patch_embeddings, pixel_values, interpolate):
        return patch_embeddings(pixel_values)
    convolution = patch_embeddings.projection
    height, width = convolution.kernel_size
    patches = pixel_values.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, channels, rows, h, columns, w)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N - 1, channels * h * w)
    return F.linear(patches, convolution.weight.flatten(1), convolution.bias)


def _is_faster_as_product(patch_embeddings, pixel_values, interpolate):
    if not (is_plain(patch_embeddings, vit.ViTPatchEmbeddings) and is_plain(patch_embeddings.projection, nn.Conv2d)):
        return False
    if pixel_values.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    size, half = pixel_values.shape[2:], pixel_values.dtype.itemsize == 2 or torch.is_autocast_enabled("cpu")
    # The convolution leaves out what is beyond the last whole patch.
    whole = all(side and not side % patch for side, patch in zip(size, patch_embeddings.patch_size, strict=True))
    expected = interpolate or tuple(size) == tuple(patch_embeddings.image_size)
    return half and whole and expected and pixel_values.shape[1] == patch_embeddings.num_channels


register_host("vit", ViTHost())
