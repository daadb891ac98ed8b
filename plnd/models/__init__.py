"""Where a model keeps what: the families table, its binding to a loaded model, loading, quantised weights."""
