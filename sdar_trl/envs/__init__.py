"""Text environments. They know neither torch nor TRL."""

from .base import Step, TextEnv, check_env, parse_tag
from .webshop import WebShopEnv


__all__ = ["Step", "TextEnv", "WebShopEnv", "check_env", "parse_tag"]
