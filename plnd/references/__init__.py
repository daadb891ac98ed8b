"""What a model does on reference corpora: means of neurons' values, and directions between languages."""
