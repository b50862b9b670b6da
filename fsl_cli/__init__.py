"""fsl: few-shot and meta-learning experiments from one command line."""

import os

# Read by OpenMP when torch is imported. Threads that spin while they wait take the processor away from whatever runs beside
# them: a training step then takes up to four times as long. GNU's and LLVM's OpenMP both know this variable.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
