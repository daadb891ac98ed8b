"""Roles of feed-forward neurons across languages (arXiv:2406.09265), example by example."""
