"""The tables and figures of the PLND paper (arXiv:2402.18815), of the folder of an experiment, each one command."""
