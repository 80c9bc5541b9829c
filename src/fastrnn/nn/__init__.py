"""What a recurrent layer needs around it to be trained: `forward` returns the output and its own backward."""

from fastrnn.nn.embedding import Embedding
from fastrnn.nn.layer import Gradients, Layer
from fastrnn.nn.linear import Linear
from fastrnn.nn.losses import softmax_cross_entropy

__all__ = ["Embedding", "Gradients", "Layer", "Linear", "softmax_cross_entropy"]
