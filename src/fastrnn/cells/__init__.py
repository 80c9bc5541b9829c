"""The registry of cells: layers, backends, tests and benchmarks all take their cells from here."""

from fastrnn.cells.cell import Cell, GatedProduct, Readout, Step, StepGradient, sigmoid
from fastrnn.cells.gru import GRU, GRU_RESET_BEFORE
from fastrnn.cells.lstm import LSTM, LSTM_COUPLED, LSTM_COUPLED_PEEPHOLE, LSTM_PEEPHOLE
from fastrnn.cells.rnn import RNN_IDENTITY, RNN_RELU, RNN_TANH

CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        RNN_TANH, RNN_RELU, RNN_IDENTITY, LSTM, LSTM_PEEPHOLE, LSTM_COUPLED, LSTM_COUPLED_PEEPHOLE, GRU,
        GRU_RESET_BEFORE,
    )
}  # fmt: skip

__all__ = ["CELLS", "Cell", "GatedProduct", "Readout", "Step", "StepGradient", "sigmoid"]
