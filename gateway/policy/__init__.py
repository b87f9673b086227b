"""The identity and topic policy: pure decisions from one strict TOML file, and the tools that explain them."""

from gateway.policy.decide import Grants
from gateway.policy.model import Action, Decision, Limits
from gateway.policy.policy import Policy, TrustCheck

__all__ = ["Action", "Decision", "Grants", "Limits", "Policy", "TrustCheck"]
