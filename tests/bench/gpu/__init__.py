"""The check of a machine with an NVIDIA GPU: every backend on the standard model, beside torch."""
