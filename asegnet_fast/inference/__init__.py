"""Prediction: NIfTI volumes in, masks, maps and reports on their own grids out, slice by slice."""

from asegnet_fast.inference.ensemble import Ensemble, Member, load_ensemble
from asegnet_fast.inference.jobs import Job, Outputs, find_volumes, plan_outputs
from asegnet_fast.inference.volume import predict_volume

__all__ = [
    "Ensemble",
    "Job",
    "Member",
    "Outputs",
    "find_volumes",
    "load_ensemble",
    "plan_outputs",
    "predict_volume",
]
