"""Checkpoints out, published neuron files in."""
