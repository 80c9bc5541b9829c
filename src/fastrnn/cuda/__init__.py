"""The loop in CUDA: `backend` is what fastrnn.recurrence describes; `source` alone can be imported without CuPy."""
