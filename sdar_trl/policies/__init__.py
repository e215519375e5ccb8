"""Policies that need no model hub: where they are by name, and how the embedded one is made."""

from .names import TINY_POLICY, policy_limits, policy_path


__all__ = ["TINY_POLICY", "policy_limits", "policy_path"]
