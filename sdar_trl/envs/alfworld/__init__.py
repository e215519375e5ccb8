"""ALFWorld: an agent in a room of text finds things, treats them and puts them away."""

from .env import AlfWorldEnv
from .world import AlfWorld


__all__ = ["AlfWorld", "AlfWorldEnv"]
