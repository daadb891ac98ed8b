"""Scores and sets of neurons, the rules that select, the algebra of sets; numpy only."""
