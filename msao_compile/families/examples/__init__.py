"""Complete example inputs of one forward of any multimodal model, from its config and class alone."""

from __future__ import annotations

from msao_compile.families.examples.measure import medium, modalities
from msao_compile.families.examples.request import Medium, request

__all__ = ["Medium", "medium", "modalities", "request"]
