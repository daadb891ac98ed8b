"""The tuner itself: rows and columns that are named or drawn, of any model.

It knows PEFT and torch, and of plnd only four files that know no more than torch: `scripts/upstream.py` makes of it a
method inside PEFT's own tree. What the neurons of a language are, and where a family keeps them, is outside.
"""
