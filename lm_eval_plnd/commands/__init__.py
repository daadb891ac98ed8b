"""The subcommands of `plnd` that need lm-eval."""
