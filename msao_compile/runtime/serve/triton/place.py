"""What lies where in a version folder of Triton's model repository."""

from __future__ import annotations

DEPLOYMENT = "deployment"
"""The folder beside model.py that holds the deployment."""
MODEL_NAME = "model.name"
"""The file beside it that says which of its models is served."""
