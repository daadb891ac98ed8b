"""Task definitions for lm-evaluation-harness; `plnd tasks` prints this folder for `--include_path`."""
