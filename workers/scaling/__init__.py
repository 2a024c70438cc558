"""How many inference replicas the load asks for: one decision function, for the local autoscaler and for the simulator. No torch, no Django."""

from workers.scaling.decision import Autoscaler, Decision, Observation, Policy, replicas_for

__all__ = ["Autoscaler", "Decision", "Observation", "Policy", "replicas_for"]
