"""fsl: few-shot and meta-learning experiments from one command line."""
