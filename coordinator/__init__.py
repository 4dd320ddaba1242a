"""The planning side of chroma-sync: plans, verification, reports and the command line."""

import os

# Before numpy is imported: it brings OpenBLAS, which starts a thread for each core, and has all of
# them spin for a while. Nothing here multiplies matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
