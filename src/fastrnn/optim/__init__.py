"""Optimisers: dictionaries of arrays in, a dictionary of new arrays out; clipping; a learning rate that falls."""

from fastrnn.optim.adam import Adam, AdamW
from fastrnn.optim.clipping import clip_by_global_norm
from fastrnn.optim.plateau import ReduceLROnPlateau
from fastrnn.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "ReduceLROnPlateau", "clip_by_global_norm"]
