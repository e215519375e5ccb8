"""WebShop: an agent searches a catalogue, chooses options and buys."""

from .env import WebShopEnv


__all__ = ["WebShopEnv"]
