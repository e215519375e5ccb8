"""WebShop: an agent searches a catalogue, chooses options and buys."""

from .env import WebShopEnv
from .world import WebShop


__all__ = ["WebShop", "WebShopEnv"]
