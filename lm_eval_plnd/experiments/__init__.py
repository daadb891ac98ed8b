"""The PLND paper's experiments: `plnd experiment` runs them, `plnd report` and `plnd card` tell of them.

From a settings file (`settings`) to the states of the model that a table compares (`plan`; `cost` estimates them), to
what each document got in each state (`run`, with `sharing`), and from there (`results`, `evaluations`) to the
tables' numbers (`changes`), to one page (`report`, made of `page` and `scores`) and to model cards (`card`).
"""
