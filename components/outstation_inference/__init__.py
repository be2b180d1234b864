"""The inference component: models of this device over the Open Inference Protocol."""

from outstation_inference.server import InferenceProcess

__all__ = ["InferenceProcess"]
