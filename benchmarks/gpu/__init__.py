"""All that needs a GPU, in one command: `PYTHONPATH=src python -m benchmarks.gpu --out DIR [--section NAME]`.

    check      device and versions, the test-suite on the device, compute-sanitizer on small cases
    barriers   what one barrier between blocks costs, by kind and number of blocks
    cudnn      cuDNN: as torch ships it, then its four algorithms called directly
    grid       fastrnn beside cuDNN over cells, dtypes and sizes, forward and forward with backward
    tables     the same for sizes that others have published

Each section writes DIR/<section>.json, row by row, and DIR/summary.txt comes last. A row that fails is recorded with
its error and the others go on; a section that runs out of its time goes on where it stopped when the command is given
again.
"""
