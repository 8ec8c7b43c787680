"""Laws are slow the first time a module is imported inside one, so no example has a deadline."""

from hypothesis import settings

settings.register_profile("omni", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("omni")
