"""The formulas: tensors in, tensors out; knows no model."""
