"""What a recurrent layer needs around it to be trained: `forward` returns the output and its own backward."""

from fastrnn.nn.attention import AdditiveAttention, Attended, AttentionGradients
from fastrnn.nn.dropout import Dropout
from fastrnn.nn.embedding import Embedding
from fastrnn.nn.layer import Gradients, Layer
from fastrnn.nn.linear import Linear
from fastrnn.nn.losses import half_mse, log_softmax, mse, softmax_cross_entropy
from fastrnn.nn.teaching import Curriculum, decoder_inputs
from fastrnn.nn.truncated import Span, spans, truncated_bptt

__all__ = [
    "AdditiveAttention", "Attended", "AttentionGradients", "Curriculum", "Dropout", "Embedding", "Gradients", "Layer",
    "Linear", "Span", "decoder_inputs", "half_mse", "log_softmax", "mse", "softmax_cross_entropy", "spans",
    "truncated_bptt",
]  # fmt: skip
