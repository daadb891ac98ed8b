"""`lm_eval --model plnd`: lm-evaluation-harness with language neurons deactivated.

This module imports nothing: every Python start-up passes through it (see `lm_eval_plnd.bridge`).
"""
