"""How a task's answers are read and scored."""
