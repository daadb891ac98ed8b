"""What switching off one set of neurons costs, on any tasks, beside as many random ones."""
