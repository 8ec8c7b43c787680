"""Imported by the process that ranks are forked of, after all else: what is there now is never garbage.

A run looks for garbage before its first step. In a forked rank it would find all of torch and transformers alive, and
copy their pages by looking.
"""

import gc

gc.collect()
gc.freeze()
