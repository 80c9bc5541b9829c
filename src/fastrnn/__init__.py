"""fastrnn: fast, trustworthy recurrent layers with their own backward pass."""

from fastrnn.backends import use_backend
from fastrnn.beam import Hypothesis, beam_search
from fastrnn.custom import register
from fastrnn.diagnosis import GradientFlow, gradient_flow
from fastrnn.errors import ShapeError
from fastrnn.layers import GRU, LSTM, RNN, load
from fastrnn.planning import Plan, plan
from fastrnn.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"
__all__ = [
    "GRU", "LSTM", "RNN", "GradientFlow", "Hypothesis", "Plan", "ShapeError", "__version__", "beam_search",
    "get_num_threads", "gradient_flow", "load", "plan", "register", "set_num_threads", "use_backend",
]  # fmt: skip
